"""A small distilled run on disk: a config, and a checkpoint of two steps. Not a test."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate

from d2kd.cli import export as tool
from tests.helpers import build_detector, make_batch, run_step

# A run with something kept in distillation.*: a temperature, and a projector of features; its teacher is nowhere.
CONFIG = """
from detectron2.config import LazyCall as L
from d2kd.losses import DynamicBoxKD, DynamicLocalizationDistillation, FeatureImitation
from d2kd.modeling import DistilledDetector
from tests.helpers import build_detector

model = L(DistilledDetector)(
    student=L(build_detector)(family="{family}", seed=9),
    teacher=dict(model=L(build_detector)(family="{family}", width=8), checkpoint="{teacher}", input_format=None),
    losses=dict(
        box={box},
        features=L(FeatureImitation)(region="inside_box", normalizer="level_locations", projector_channels=[8, 8]),
    ),
    input_format=None,
)
"""
PLAIN = """
from detectron2.config import LazyCall as L
from tests.helpers import build_detector
model = L(build_detector)(family="{family}", seed=9)
"""


class Run:
    """A config, and a checkpoint of two steps of it with all that a trainer saves; the teacher is gone by then."""

    def __init__(self, folder, family):
        teacher = folder / "teacher.pth"
        self.folder, self.family = folder, family
        self.config = folder / "run.py"
        box, temperature = "L(DynamicBoxKD)()", "running_temperature"
        if family == "GFL":
            box = 'L(DynamicLocalizationDistillation)(kind="learned")'
            temperature = "learned_temperature.theta"
        kept = (f"box.{temperature}", "features.projector.bias", "features.projector.weight")
        self.kept = [f"distillation.losses.{name}" for name in kept]
        self.config.write_text(CONFIG.format(family=family, teacher=teacher, box=box))
        DetectionCheckpointer(build_detector(family, width=8), str(folder)).save("teacher")
        self.model = instantiate(LazyConfig.load(str(self.config)).model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        for step in range(2):
            optimizer.zero_grad()
            sum(run_step(self.model, make_batch(seed=step), step).values()).backward()
            optimizer.step()
        teacher.unlink()
        DetectionCheckpointer(self.model, str(folder), optimizer=optimizer).save("model", iteration=1)
        self.checkpoint, self.output = folder / "model.pth", folder / "out" / "student.pth"

    def __call__(self, *options, to="weights"):
        """``d2kd export``; returns the file."""
        output = self.output if to == "weights" else self.output.with_suffix(f".{to}")
        argv = [str(self.config), str(self.checkpoint), "--output", str(output), "--to", to, *map(str, options)]
        tool.run(tool.parse_args(argv))
        return output

    def change(self, edit):
        content = torch.load(self.checkpoint)
        edit(content["model"])
        torch.save(content, self.checkpoint)

    def written(self):
        folder = self.output.parent
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
