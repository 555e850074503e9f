"""What of a config decides a result."""

import pytest
from omegaconf import OmegaConf

from d2kd.experiments.digests import files_sha256

BACKBONE = "model.student.backbone.bottom_up.weights"


@pytest.mark.parametrize(
    "losses, places",
    [({"kd": {"weight": 1.0}}, {BACKBONE, "model.teacher.model.config"}), (None, {BACKBONE})],
    ids=["distilled", "alone"],
)
def test_files_of_the_model(tmp_path, losses, places):
    """Of the teacher, its config alone, since its checkpoint is to be trained; and only where it teaches."""
    for name in ("resnet.pth", "teacher.yaml", "teacher.pth"):
        (tmp_path / name).write_bytes(b"")
    student = {"name": "resnet18", "backbone": {"bottom_up": {"weights": f"{tmp_path}/resnet.pth"}}}
    teacher = {"model": {"config": f"{tmp_path}/teacher.yaml"}, "checkpoint": f"{tmp_path}/teacher.pth"}
    model = {"student": student, "teacher": teacher, "losses": losses}
    cfg = OmegaConf.create({"model": model, "train": {"init_checkpoint": "detectron2://R-50.pkl"}})
    assert files_sha256(cfg).keys() == places
    before = files_sha256(cfg)
    (tmp_path / "resnet.pth").write_bytes(b"other weights")
    assert [place for place, digest in files_sha256(cfg).items() if digest != before[place]] == [BACKBONE]
