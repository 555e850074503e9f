"""What is kept of finished runs."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate

from d2kd.data.digits import dataset
from d2kd.experiments import ALONE, METRICS, load_detector
from d2kd.experiments.plan import plan_run
from d2kd.experiments.results import evaluate_checkpoint
from tests.experiments.small import experiment


def test_evaluate_checkpoint_measures_the_saved_weights_on_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 4, "test": 5})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = plan_run(experiment(tmp_path, overrides=("train.device=cpu",)), "fcos", ALONE, 0).load_config()
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    loaded = load_detector(cfg, tmp_path / "weights.pth")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for split in ("val", "test"):
        metrics = evaluate_checkpoint(cfg, tmp_path / "weights.pth", split)
        assert set(metrics) == set(METRICS) and 0 <= metrics["AP"] < 5
        assert metrics["APl"] is None  # no object of 96 x 96 pixels
        assert cfg.dataloader.test.dataset.names == f"digits_{split}"
