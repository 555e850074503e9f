"""The cards' GFL from scratch, distilled by CrossKD with PKD in the first half of its schedule."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from d2kd import distill, get_config

_recipe, _teacher = get_config("common/recipes/cards.py"), get_config("common/teachers/cards_gfl.py")
dataloader, lr_multiplier, optimizer, train = (
    _recipe[x] for x in ("dataloader", "lr_multiplier", "optimizer", "train")
)
model = distill(
    get_config("common/models/cards_gfl.py").model,
    teacher=_teacher.model,
    teacher_checkpoint="output/cards/gfl_teacher/model_final.pth",
    method="crosskd_pkd",
)
for _loss in model.losses.values():
    _loss.schedule = L(MultiStepParamScheduler)(values=[1.0, 0.0], milestones=[1, 2])
    _loss.schedule_iters = "${train.max_iter}"
train.output_dir = "output/cards_half"
