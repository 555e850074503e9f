"""Weights that fit in part, and averaged weights beside "model"."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from d2kd.checkpoint import MisfitError, load_strictly, other_weights


def load(model, path, **kwargs):
    return load_strictly(model, str(path), refusal="It does not fit", absent="It is not there.", **kwargs)


@pytest.fixture
def averaged(tmp_path):
    """A file with a layer's weights, and three kinds of averages of them."""
    layer, average, others = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
    model_ema = AveragedModel(average)
    content = {"model": layer.state_dict(), "ema": average.state_dict(), "model_ema": model_ema.state_dict()}
    content |= {"state_dict_ema": {"state_dict": others.state_dict(), "decay": 0.9}, "schema": {}, "iteration": 3}
    torch.save(content, tmp_path / "averaged.pth")
    return tmp_path / "averaged.pth", layer, average, others


@pytest.mark.parametrize("entry, which", [("model", 1), ("ema", 2), ("model_ema", 2), ("state_dict_ema", 3)])
def test_the_entry_that_is_named_is_loaded(averaged, entry, which):
    layer = nn.Linear(2, 3)
    loaded = load(layer, averaged[0], entry=entry)
    assert torch.equal(layer.weight, averaged[which].weight)
    if entry == "model":
        assert other_weights(loaded.rest) == ["ema", "model_ema", "state_dict_ema"]


def test_an_entry_that_is_not_there(averaged, tmp_path):
    with pytest.raises(ValueError, match="has no weights 'emma', only 'model', 'ema', 'model_ema', 'state_dict_ema': "):
        load(nn.Linear(2, 3), averaged[0], entry="emma")
    (tmp_path / "x.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.pkl has one set of weights, not 'ema' \(model.teacher.weights\)"):
        load(nn.Linear(2, 3), tmp_path / "x.pkl", entry="ema")


def test_what_does_not_fit_is_counted_and_named(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    weights = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(3, 3), "x": torch.ones(1)}
    torch.save({"model": weights}, tmp_path / "part.pth")
    with pytest.raises(MisfitError) as error:
        load(model, tmp_path / "part.pth")
    assert str(error.value) == (
        "It does not fit: missing, 6: 0.bias, 1.bias, 2.weight and 3 more; unexpected, 1: x; "
        "shape mismatch, 1: 1.weight (checkpoint (3, 3), model (2, 2))."
    )
    misfit = load(model, tmp_path / "part.pth", allow_partial=True).misfit
    assert len(misfit.missing) == 6 and model[0].weight.eq(1).all()
