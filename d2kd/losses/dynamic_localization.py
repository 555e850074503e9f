"""FTPD's dynamic localisation temperature on distribution heads: a temperature for each edge of each location."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.edge_temperatures import entropy_temperature, sharpness_temperatures, std_temperature
from d2kd.losses.kernel import check_number, check_reduction, check_weight, drop_unweighted, weigh_and_reduce
from d2kd.losses.learned_temperature import LearnedTemperature
from d2kd.losses.temperature_kl import GRAD_SCALES, temperature_kl
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = [
    "DynamicLocalizationDistillation",
    "dynamic_localization_kd",
]

_KINDS = ("std", "sharpness", "entropy", "learned", "fixed")
_SHARES = ("teacher", "each", "mean")


def dynamic_localization_kd(
    student_bins: Tensor,
    teacher_bins: Tensor,
    *,
    temperature: float | Tensor,
    student_temperature: float | Tensor | None = None,
    weight: Tensor | None = None,
    grad_scale: str = "t2",
    reduction: str = "none",
    dim: int = -1,
) -> Tensor:
    """
    Kullback-Leibler divergence between the distributions that student and teacher predict for a box edge, each edge at
    its own temperature.

    With p = softmax(teacher / T), q = softmax(student / T) over the n + 1 bins of one edge i:

        l_i = weight_i * T_i^2 * sum_b p_ib (ln p_ib - ln q_ib)

    The dynamic localisation temperature (DLT) of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025), *reconstructed*: only
    the abstract is public. It says that the localisation branch has a dynamic temperature, to transfer localisation
    more precisely and without setting one by hand; the formula, the temperatures and all numbers here are this
    library's, after related work.

    Student and teacher share the teacher's temperature by default, so that equal bins are the minimum. With a
    temperature each (``student_temperature``) a student whose bins are the teacher's times a factor has no loss, though
    its expected edge, and so its box, is another.

    Without ``weight``, at one fixed temperature, n + 1 times :func:`d2kd.losses.localization_distillation`, which takes
    the mean over bins. The teacher is detached; how it is computed: :func:`d2kd.losses.temperature_kl`.

    Args:
        student_bins: raw logits, any shape with the n + 1 bins of an edge on axis ``dim``, for instance the head's own
            map seen as (N, A, 4, n+1, H, W) with ``dim=3``.
        teacher_bins: raw logits, same shape.
        temperature: T > 0: a number, or a tensor with size 1 on axis ``dim``, see :func:`d2kd.losses.temperature_kl`.
        student_temperature: the student's own; None: ``temperature``.
        weight: a factor per edge, of the inputs' shape without axis ``dim``; detached.
        grad_scale: "t2" (the factor T^2, or T_t T_s) or "none" (without).
        reduction: "none", "sum" or "mean" over the edges (not a weighted mean; zero if there are none).
        dim: the axis of the bins.

    Returns:
        The loss: per edge (the inputs' shape without axis ``dim``) for "none", else a scalar. float32, or float64 if
        an input is float64.

    Raises:
        ValueError: see :func:`d2kd.losses.temperature_kl`; and for an unknown ``reduction``, a ``weight`` of another
            shape or one that requires grad.
    """
    loss = temperature_kl(
        student_bins,
        teacher_bins,
        temperature=temperature,
        student_temperature=student_temperature,
        bin_reduction="sum",
        grad_scale=grad_scale,
        dim=dim,
    )
    check_reduction("dynamic_localization_kd", reduction, ("none", "sum", "mean"))
    check_weight("dynamic_localization_kd", weight, loss.shape, "the inputs' shape without the bins")
    return weigh_and_reduce(loss, weight, reduction)


@LOSS_REGISTRY.register()
class DynamicLocalizationDistillation(DistillationLoss):
    """
    :func:`dynamic_localization_kd` over the edge distributions of dense outputs, averaged over a location's four
    edges: FTPD's localisation term on distribution heads, with this library's choice of region and normaliser (after
    Song et al., reconstructed from the abstract and related work). Plain heads: :class:`DynamicBoxKD`.

    Both detectors need a distribution head with the same number of bins. Temperatures are constants of a step: no
    gradient flows into the predictions through them.

    Args:
        kind: where T comes from: "std" (:func:`std_temperature`), "sharpness" (:func:`sharpness_temperatures`),
            "entropy" (:func:`entropy_temperature`), "learned" (:class:`LearnedTemperature`: a parameter of this loss)
            or "fixed" (``temperature``, as LD; for comparison).
        kappa: factor of "std".
        t_min, t_max: bounds of "std", "sharpness" and "entropy", in the unit of the logits.
        share: whose T "std" and "entropy" use: "teacher" (the teacher's on both sides), "each" (each its own, as
            NormKD does; see :func:`dynamic_localization_kd` for what that forgives) or "mean" (theirs on both sides).
        grad_scale: "t2" or "none".
        tau: mean temperature of "sharpness".
        temperature: T of "fixed".
        per, num_levels, learn_iters, t_start, t_span: of "learned", see :class:`LearnedTemperature`.
        region, normalizer, kwargs: see :class:`DistillationLoss`.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for an unknown choice or a number out of its range.
    """

    task = "box"

    def __init__(
        self,
        *,
        kind: str = "std",
        kappa: float = 1.0,
        t_min: float = 1.0,
        t_max: float = 10.0,
        share: str = "teacher",
        grad_scale: str = "t2",
        tau: float = 4.0,
        temperature: float = 10.0,
        per: str = "scalar",
        num_levels: int | None = None,
        learn_iters: int = 4500,
        t_start: float = 1.0,
        t_span: float = 20.0,
        region: str | Mapping[str, Any] = QUALITY,
        normalizer: str = "locations",
        **kwargs: Any,
    ) -> None:
        super().__init__(region=region, normalizer=normalizer, **kwargs)
        name = type(self).__name__
        for field, value, known in (
            ("kind", kind, _KINDS),
            ("share", share, _SHARES),
            ("grad_scale", grad_scale, GRAD_SCALES),
        ):
            if value not in known:
                raise ValueError(f"{name}.{field} is {value!r}, expected one of {', '.join(known)}.")
        for field, value in (("kappa", kappa), ("t_min", t_min), ("tau", tau), ("temperature", temperature)):
            check_number(name, field, value)
        check_number(name, "t_max", t_max, above=t_min, meaning="t_min")
        self.kind = kind
        self.kappa = kappa
        self.t_min = t_min
        self.t_max = t_max
        self.share = share
        self.grad_scale = grad_scale
        self.tau = tau
        self.temperature = temperature
        self.per = per
        self.num_levels = num_levels
        self.learn_iters = learn_iters
        self.t_start = t_start
        self.t_span = t_span
        learned = LearnedTemperature(
            owner=name, per=per, num_levels=num_levels, learn_iters=learn_iters, t_start=t_start, t_span=t_span
        )
        self.learned_temperature = learned if kind == "learned" else None

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        if source.bins is None or source.bins != teacher.bins:
            ours, theirs = (
                "none" if output.bins is None else f"{output.bins} (reg_max={output.bins - 1})"
                for output in (source, teacher)
            )
            raise ValueError(
                "DynamicLocalizationDistillation compares the distributions of box edges and needs equal bins on both "
                f"sides, but {self.source} ({source.family}) has {ours} and the teacher ({teacher.family}) has "
                f"{theirs}: give both detectors a distribution head (GFL, DistributionRetinaNet, DistributionFCOS, "
                "DistributionATSS) of the same head.reg_max, or use DynamicBoxKD where neither has one."
            )

    def temperatures(
        self, student_bins: Tensor, teacher_bins: Tensor, level: int
    ) -> tuple[float | Tensor, float | Tensor | None]:
        """
        Args:
            student_bins, teacher_bins: one level's maps, (..., 4, n+1, H, W).
            level: of the pyramid.

        Returns:
            T of the teacher and of the student (None: the same), each a number, or a tensor that broadcasts to the
            maps, size 1 on the axis of the bins.
        """
        if self.kind == "fixed":
            return self.temperature, None
        if self.kind == "learned":
            learned = self.learned_temperature(level=level, iteration=self.iteration)
            return (learned.view(4, 1, 1, 1) if self.per == "edge" else learned), None
        bounds = dict(t_min=self.t_min, t_max=self.t_max, dim=-3)
        if self.kind == "sharpness":
            return sharpness_temperatures(teacher_bins, student_bins, tau=self.tau, **bounds)

        def of(bins: Tensor) -> Tensor:
            if self.kind == "entropy":
                return entropy_temperature(bins, **bounds)
            return std_temperature(bins, kappa=self.kappa, **bounds)

        if self.share == "teacher":
            return of(teacher_bins), None
        if self.share == "each":
            return of(teacher_bins), of(student_bins)
        return of(teacher_bins).add_(of(student_bins)).mul_(0.5), None

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        region, student_bins, teacher_bins = drop_unweighted(
            region, source.box_params[level], teacher.box_params[level]
        )
        temperature, student_temperature = self.temperatures(student_bins, teacher_bins, level)
        edges = dynamic_localization_kd(
            student_bins,
            teacher_bins,
            temperature=temperature,
            student_temperature=student_temperature,
            grad_scale=self.grad_scale,
            dim=3,
        )
        return weigh_and_reduce(edges.mean(dim=2), region, "sum")

    def extra_repr(self) -> str:
        fields = ["kind", "kappa", "t_min", "t_max", "share", "grad_scale", "tau", "temperature"]
        fields += ["per", "num_levels", "learn_iters", "t_start", "t_span"]
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])
