"""What makes distillation useless, seen while it trains."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from d2kd.losses import DistillationLoss
from d2kd.losses.learned_temperature import LearnedTemperature
from d2kd.modeling.distillation.gradient_shares import gradient_shares
from d2kd.modeling.distillation.step_regions import region_keys
from d2kd.modeling.distillation.watched_tensors import Snapshot, TeacherWatch

__all__ = ["FAR", "FIRST_SHARE", "OBJECTS", "PATIENCE", "SHARE_PERIOD", "Health"]

# Below Detectron2's logger: whichever trainer runs has set that one up.
logger = logging.getLogger(f"detectron2.{__name__}")

#: Steps in a row in which something useless has to be seen before training stops.
PATIENCE = 50

#: Gradient shares are first measured at this iteration, of those that trainers log by default, then every so many.
FIRST_SHARE = 19
SHARE_PERIOD = 100
_SHARE = "_gradient_share"

#: A term that pulls so many times as hard as the detection losses, or as weakly, in two measurements is warned of, from
#: half of its weight on.
FAR = 30

#: The monitor that says how many objects a batch has.
OBJECTS = "kd/objects"

#: How many of the student's parameters are compared by value, where torch does not count their changes.
_COPIES = 8


class Health:
    """
    Watches one distilled model while it trains. Nothing here changes a weight, a mode or the random state, and what is
    counted rides in the step's one transfer; what is found is the same on all ranks.

    Args:
        measures_shares: of the terms in the gradient, now and then.
    """

    def __init__(self, *, measures_shares: bool = True) -> None:
        self._measures_shares = measures_shares
        self.forget()
        self._zero: Counter[str] = Counter()  # term -> steps in a row in which it was exactly zero
        self._empty: Counter[str] = Counter()  # and in which its region was empty
        self._warned: set[str] = set()
        self._far: Counter[str] = Counter()
        self._measured_at = -1
        self._unmeasured = False

    def forget(self) -> None:
        """Begin anew with the tensors that the model has now: it was moved or cast."""
        self._teacher: TeacherWatch | None = None
        self._start: tuple[Snapshot, Snapshot] | None = None  # of the student and of what distillation trains
        self._steps = 0
        self._check_at = PATIENCE
        self._still: Snapshot | None = None  # of the student, since the storage's iteration was the same
        self._iteration = -1
        self._same_iteration = 0

    def begin(
        self,
        student: nn.Module,
        distillation: nn.Module,
        losses: Mapping[str, DistillationLoss],
        teacher: DenseDetector | None,
        iteration: int,
    ) -> None:
        """
        What is seen before a step, on the host.

        Args:
            student: the detector that is trained.
            distillation: what is trained beside it.
            losses: all of them, by name.
            teacher: the detector that is loaded, if any loss is on.
            iteration: of the event storage.

        Raises:
            ValueError: the student is frozen, the teacher has changed, a parameter is in no optimizer group, or
                nobody steps the event storage; in one sentence, with what to change.
        """
        if not losses or not torch.is_grad_enabled():
            return
        if teacher is not None:
            if self._teacher is None or self._teacher.detector is not teacher:
                self._teacher = TeacherWatch(teacher)
            self._teacher.check()
        flags = {x.requires_grad for x in student.parameters()}
        if flags == {False}:
            raise ValueError(
                "No parameter of the student requires gradient, so that nothing would be trained: something froze it "
                "(freeze_at, requires_grad_(False)); unfreeze what is to be trained."
            )
        self._check_storage(student, losses, iteration)
        self._check_optimizer(student, distillation)

    def _check_storage(self, student: nn.Module, losses: Mapping[str, DistillationLoss], iteration: int) -> None:
        if iteration != self._iteration:
            self._iteration, self._same_iteration, self._still = iteration, 0, None
            return
        self._same_iteration += 1
        if self._same_iteration == 1:
            self._still = Snapshot(_trained(student), copies=_COPIES)
        if self._still is None or self._same_iteration % PATIENCE:
            return
        scheduled = [f"model.losses.{name}" for name, loss in losses.items() if _reads_iteration(loss)]
        if scheduled and self._still.has_moved():  # else gradients of many forward passes are summed up
            raise ValueError(
                f"The event storage has been at iteration {iteration} for {self._same_iteration} steps that changed "
                f"the student, and {', '.join(scheduled)} would never leave the beginning of a schedule: call "
                "storage.step() of Detectron2's EventStorage after each step, as its trainers do."
            )

    def _check_optimizer(self, student: nn.Module, distillation: nn.Module) -> None:
        if self._steps == 0:
            beside = _trained(distillation)
            copies = Snapshot(_trained(student), _COPIES), Snapshot(beside, len(beside))
            self._start = copies if beside else None
        elif self._start is not None and self._steps == self._check_at:
            self._check_at *= 2
            of_student, of_distillation = self._start
            if of_student.has_moved():  # else look again later, as above
                self._start = None
                unmoved = of_distillation.unmoved()
                if unmoved:
                    raise ValueError(
                        f"{len(of_distillation) - len(unmoved)} of the {len(of_distillation)} parameters that are "
                        f"trained beside the student (distillation.*) changed in {self._steps} steps that changed the "
                        f"student; distillation.{unmoved[0]} did not: is it in no optimizer group? Build the optimizer "
                        "over the DistilledDetector itself, not over d2kd.student(model)."
                    )
        self._steps += 1

    def shares(self, losses: Mapping[str, Tensor], features: Sequence[Tensor], iteration: int) -> dict[str, Tensor]:
        """
        ``kd/<name>_gradient_share`` of each term, in a step that measures them; see :func:`gradient_shares`. NaN where
        they cannot be measured.
        """
        due = iteration >= FIRST_SHARE and (iteration - FIRST_SHARE) % SHARE_PERIOD == 0
        if not (due and self._measures_shares) or iteration == self._measured_at or not torch.is_grad_enabled():
            return {}
        self._measured_at = iteration
        try:
            shares = gradient_shares(losses, features)
        except (RuntimeError, ValueError) as error:
            if not self._unmeasured:
                logger.warning("The distillation terms' gradient shares are not measured: %s", error)
            self._unmeasured = True
            terms = [name.removeprefix("loss_kd_") for name in losses if name.startswith("loss_kd_")]
            shares = dict.fromkeys(terms, features[0].new_full((), torch.nan))
        return {_share_key(name): share for name, share in shares.items()}

    def end(
        self,
        active: Mapping[str, DistillationLoss],
        values: dict[str, float],
        nonzero: set[str],
        iteration: int,
    ) -> None:
        """
        What is seen after a step, of all ranks together.

        Args:
            active: the losses of this step by name.
            values: what is logged; shares that could not be measured are taken out.
            nonzero: which losses and monitors are not exactly zero on some rank.
            iteration: of the event storage.

        Raises:
            ValueError: a term was exactly zero, or a region empty, in each of the last ``PATIENCE`` steps with objects.
        """
        if OBJECTS in nonzero and torch.is_grad_enabled():
            for name, loss in active.items():
                regions = region_keys(name, loss)
                self._empty[name] = 0 if nonzero.intersection(regions) else self._empty[name] + 1
                self._zero[name] = 0 if f"loss_kd_{name}" in nonzero else self._zero[name] + 1
                if self._empty[name] == PATIENCE:
                    raise ValueError(_empty_region(name, loss, iteration))
                if self._zero[name] == PATIENCE:
                    raise ValueError(_zero_term(name, loss, values, iteration))
        for key in [key for key, value in values.items() if key.endswith(_SHARE) and math.isnan(value)]:
            del values[key]
        self._tell(active, {name: values[key] for name in active if (key := _share_key(name)) in values}, iteration)

    def _tell(self, active: Mapping[str, DistillationLoss], shares: Mapping[str, float], iteration: int) -> None:
        """Log the shares, and warn, once a term, of one that is far from the detection losses' twice in a row."""
        if not shares:
            return
        logger.info(
            "Gradient at the student's FPN outputs, the detection losses' being 1: %s",
            ", ".join(f"{name} {share:.3g}" for name, share in shares.items()),
        )
        for name, share in shares.items():
            loss = active[name]
            if loss.scheduled_weight < loss.weight / 2:
                continue  # a warm-up, or a term that fades: what it pulls with now says little of the weight
            full = share * loss.weight / loss.scheduled_weight
            self._far[name] = self._far[name] + 1 if full >= FAR or 0 < full <= 1 / FAR else 0
            if self._far[name] < 2 or name in self._warned:
                continue
            self._warned.add(name)
            weight = f"{loss.weight / full:.2g}"
            much = f"{full:.3g} times" if full > 1 else f"1/{1 / full:.3g} of"
            logger.warning(
                "loss_kd_%s pulls with %s the detection losses' gradient at the student's FPN outputs (iteration %d): "
                "model.losses.%s.weight=%s would make them equal, now it is %.3g (in a yacs config: an entry "
                "'%s.weight=%s' of MODEL.DISTILLATION.LOSSES).",
                name,
                much,
                iteration,
                name,
                weight,
                loss.weight,
                name,
                weight,
            )


def _share_key(name: str) -> str:
    return f"kd/{name}{_SHARE}"


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: x for name, x in module.named_parameters() if x.requires_grad}


def _reads_iteration(loss: DistillationLoss) -> bool:
    return loss.schedule is not None or any(isinstance(module, LearnedTemperature) for module in loss.modules())


def _empty_region(name: str, loss: DistillationLoss, iteration: int) -> str:
    regions = " and ".join(spec.name for spec in loss.regions)
    return (
        f"At iteration {iteration} the region of model.losses.{name} ({regions}) had been empty on all ranks for "
        f"{PATIENCE} steps with objects, so that it trains nothing: check that the labels' boxes fit the images, that "
        "student and teacher have the levels in common on which the objects lie (see the log's first lines), and the "
        f"options of model.losses.{name}.region; model.losses.{name}=null switches it off."
    )


def _zero_term(name: str, loss: DistillationLoss, values: Mapping[str, float], iteration: int) -> str:
    if values.get("kd/gap_at_positives") == 0:
        cause = (
            "student and teacher predict the same, so is model.teacher.checkpoint the file that the student starts "
            "from (train.init_checkpoint)?"
        )
    else:
        cause = (
            "has it nothing to compare (a softmax over one class, a feature map of one cell), or does "
            "model.losses.NAME.weight vanish?"
        ).replace("NAME", name)
    return (
        f"At iteration {iteration} loss_kd_{name} had been exactly 0 on all ranks for {PATIENCE} steps with objects, "
        f"though its region is not empty: {cause} model.losses.{name}=null switches it off."
    )
