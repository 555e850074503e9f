"""distill(), the packaged configs, and overrides."""

from inspect import signature

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from omegaconf import OmegaConf
from torch import nn

from d2kd.config import distill, load_config, with_method
from d2kd.data import class_map
from d2kd.losses import BinaryClassificationKD
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.state import build_losses
from d2kd.modeling.distillation.teacher import Teacher
from tests.helpers import build_detector, make_batch, run_step
from tests.nodes import checkpoint_of, fcos, gfl, retinanet

# ---- distill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
@pytest.mark.parametrize("build", [retinanet, fcos])
def test_a_wrapped_node_trains(build, method, tmp_path):
    model = instantiate(
        distill(build(), teacher=build(), teacher_checkpoint=checkpoint_of(build(), tmp_path), method=method)
    )
    assert isinstance(model, DistilledDetector)
    losses = run_step(model, make_batch())
    assert [k for k in losses if k.startswith("loss_kd_")] == [f"loss_kd_{method}_cls", f"loss_kd_{method}_loc"]


def test_the_node_given_is_left_as_it_was():
    model, teacher = fcos(), fcos()
    before = OmegaConf.to_container(model, resolve=False)
    node = distill(model, teacher=teacher, teacher_checkpoint="t.pth", method="bckd")
    node.student.num_classes = 9
    node.teacher.model.num_classes = 8
    assert OmegaConf.to_container(model, resolve=False) == before
    assert model.num_classes == teacher.num_classes == 3
    assert node.student.head.num_classes == 9  # interpolations inside the node live on


def test_the_node_shows_every_argument_that_can_be_set():
    node = distill(fcos(), teacher=fcos(), method="bckd")
    assert set(node) - {"_target_"} == set(signature(DistilledDetector.__init__).parameters) - {"self"}
    parameters = signature(Teacher).parameters.values()
    assert set(node.teacher) == {parameter.name for parameter in parameters}
    for parameter in parameters:  # with the values that it has where it is left out
        assert parameter.name == "model" or node.teacher[parameter.name] == parameter.default


class OwnOrder(RetinaNet):
    """Its constructor does not say what it takes beside the key of its own."""

    def __init__(self, *, extra=1, **kwargs):
        super().__init__(input_format="RGB", **kwargs)


@pytest.mark.parametrize(
    "model, expected",
    [
        (retinanet(input_format="RGB"), "RGB"),
        (retinanet(), "BGR"),  # the default of its class
        (retinanet(input_format=None), "BGR"),
        (retinanet(input_format="${order}"), "RGB"),
        (gfl(), "BGR"),  # that of a class that it derives from
        (fcos(), "BGR"),  # which has none
        (fcos(pixel_mean=[100.0], pixel_std=[50.0]), "L"),
        (L(build_detector)(family="RetinaNet"), None),
        (L(build_detector)(family="RetinaNet", input_format="RGB"), "RGB"),
        (retinanet(_target_=OwnOrder), None),
    ],
)
def test_a_reference_to_the_models_input_format_reads_the_students(model, expected):
    """As a mapper's image_format may have it; whatever is changed afterwards."""
    cfg = OmegaConf.create(
        {"order": "RGB", "model": model, "image_format": "${model.input_format}"}, flags={"allow_objects": True}
    )
    cfg.model = distill(cfg.model, teacher=fcos(), teacher_checkpoint="t.pth", losses={})
    assert cfg.image_format == expected
    if expected in ("BGR", "RGB"):
        assert instantiate(cfg.model).input_format == expected
    if model._target_ is RetinaNet:
        LazyConfig.apply_overrides(cfg, ["model.student.input_format=RGB"])
        assert cfg.image_format == instantiate(cfg.model).input_format == "RGB"


def test_losses_of_ones_own():
    losses = dict(mine=L(BinaryClassificationKD)(weight=2.0), off=None)
    model = instantiate(distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", losses=losses))
    assert list(model.losses) == ["mine"] and model.losses["mine"].weight == 2.0


def test_crossed_losses_are_those_of_the_teachers_family():
    """Their output has its coding; what compares the student's own is of the student's."""
    theirs, ours = (get_losses("crosskd_pkd", family) for family in ("FCOS", "RetinaNet"))
    assert theirs["crosskd_loc"] != ours["crosskd_loc"]
    losses = distill(retinanet(), teacher=fcos(), teacher_checkpoint="t.pth", method="crosskd_pkd").losses
    assert losses == {**{name: theirs[name] for name in ("crosskd_cls", "crosskd_loc")}, "pkd": ours["pkd"]}
    assert distill(retinanet(), teacher="t.yaml", teacher_checkpoint="t.pth", method="crosskd_pkd").losses == ours
    built = L(build_detector)(family="FCOS")  # a function: of which family is not known before
    assert distill(retinanet(), teacher=built, teacher_checkpoint="t.pth", method="crosskd_pkd").losses == ours
    alike = distill(retinanet(), teacher=retinanet(), teacher_checkpoint="t.pth", method="crosskd_pkd").losses
    assert alike == ours and list(alike) == list(ours)


def test_what_is_built_already_is_refused_in_a_sentence():
    with pytest.raises(TypeError, match=r"a FCOS that is already built as teacher, .* DistilledDetector\(.*teacher="):
        distill(fcos(), teacher=build_detector("FCOS"), method="bckd")
    with pytest.raises(TypeError, match=r"KD that is already built as losses\['a'\], .*, losses={'a': module, ...}\)"):
        distill(fcos(), teacher=fcos(), losses=dict(a=BinaryClassificationKD()))


def test_a_student_that_a_function_builds_has_no_known_family():
    node = L(build_detector)(family="FCOS")
    with pytest.raises(TypeError, match="model._target_ is .*build_detector.*: give losses={...} instead of method"):
        distill(node, teacher=fcos(), method="bckd")
    losses = dict(mine=L(BinaryClassificationKD)())
    model = instantiate(distill(node, teacher=fcos(), teacher_checkpoint="t.pth", losses=losses))
    assert list(model.losses) == ["mine"]


@pytest.mark.parametrize("kwargs", [dict(), dict(method="bckd", losses={})])
def test_exactly_one_of_method_and_losses(kwargs):
    with pytest.raises(ValueError, match="expected exactly one of them"):
        distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", **kwargs)


def test_an_unknown_method_suggests():
    with pytest.raises(ValueError, match="did you mean bckd"):
        distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="bkd")


class Mine(FCOS):
    pass


@pytest.mark.parametrize("target", [FCOS, Mine, "detectron2.modeling.meta_arch.fcos.FCOS"])
def test_a_detector_gets_its_familys_preset(target):
    node = fcos()
    node._target_ = target
    assert distill(node, teacher=fcos(), method="crosskd").losses.crosskd_cls.tail == 2


@pytest.mark.parametrize("node", [dict(a=1), None, "model"])
def test_what_is_no_model_node_is_refused(node):
    with pytest.raises(TypeError, match="Expected model to be a model node with a _target_"):
        distill(node, teacher=fcos(), method="bckd")
    with pytest.raises(
        TypeError, match="Linear is no DenseDetector of detectron2, expected one that d2kd reads: ATSS, FCOS, GFL, Ret"
    ):
        distill(L(nn.Linear)(in_features=1, out_features=1), teacher=fcos(), method="bckd")


# ---- references ------------------------------------------------------------------------------------------------------


def config_with(reference, where="head.num_classes", build=fcos, **rest):
    return OmegaConf.create(dict(model=build(**{where: reference}), **rest), flags={"allow_objects": True})


@pytest.mark.parametrize(
    "reference", ["${model.num_classes}", "${dataset.num_classes}", "${..num_classes}", "${...dataset.num_classes}"]
)
def test_references_mean_the_same_after_the_move(reference):
    cfg = config_with(reference, dataset=dict(num_classes=3))
    teacher = fcos(num_classes=3)
    cfg.model = distill(cfg.model, teacher=teacher, teacher_checkpoint="t.pth", method="bckd")
    cfg.dataset.num_classes = 3
    assert cfg.model.student.head.num_classes == 3
    assert instantiate(cfg.model).student.head.cls_score.out_channels == 3


def test_references_of_the_teacher_too():
    cfg = config_with("${model.num_classes}")
    other = config_with("${model.num_classes}")
    other.model.num_classes = 4
    cfg.model = distill(cfg.model, teacher=other.model, teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.num_classes == 3
    assert cfg.model.teacher.model.head.num_classes == 4


def test_a_node_that_the_teacher_refers_to_keeps_nothing_of_its_config():
    other = config_with("${shared.head}", "head", shared=dict(head=fcos().head, k=3))
    other.shared.head.num_classes = "${shared.k}"  # there is no such key where the teacher goes
    cfg = config_with(3)
    cfg.model = distill(cfg.model, teacher=other.model, teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.teacher.model.head.num_classes == 3


def test_references_to_nodes_and_in_lists():
    cfg = config_with("${widths.head}", "head.conv_dims", widths=dict(head=[8, 8]))
    cfg.model.pixel_std = [1.0, "${std}", 1.0]
    cfg.std = 2.0
    cfg.model = distill(cfg.model, teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.conv_dims == [8, 8]
    assert cfg.model.student.pixel_std == [1.0, 2.0, 1.0]
    assert instantiate(cfg.model).student.pixel_std.flatten().tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("reference", ["${shared.k}", "${..k}", "${shared.aliases.k}"])
def test_a_node_referred_to_brings_its_own_references(reference):
    cfg = config_with("${shared.head}", "head", shared=dict(head=fcos().head, k=3, aliases=dict(k="${shared.k}")))
    cfg.shared.head.num_classes = reference
    cfg.model = distill(cfg.model, teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.num_classes == 3


@pytest.mark.parametrize("reference", ["${model.num_classes}", "${....dataset.num_classes}"])
def test_a_reference_that_leads_nowhere_is_refused_in_a_sentence(reference):
    node = fcos(**{"head.num_classes": reference})  # alone: there is no ${model} around it
    with pytest.raises(ValueError) as error:
        distill(node, teacher=fcos(), method="bckd")
    assert str(error.value) == (
        f"model.head.num_classes is '{reference}', which cannot be resolved before model moves under model.student: "
        "give it a value."
    )
    with pytest.raises(ValueError, match=r"teacher.head.num_classes .* moves under model.teacher.model"):
        distill(fcos(), teacher=node, method="bckd")


# ---- overrides -------------------------------------------------------------------------------------------------------


def overridden(*overrides):
    cfg = OmegaConf.create(
        dict(model=distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")),
        flags={"allow_objects": True},
    )
    return LazyConfig.apply_overrides(cfg, list(overrides)).model


@pytest.mark.parametrize(
    "overrides, names",
    [
        (["model.losses=null"], []),
        (["model.losses.bckd_loc=null"], ["bckd_cls"]),
        (["model.losses={}"], ["bckd_cls", "bckd_loc"]),  # merges: changes nothing
        (["model.losses.bckd_cls.weight=0.5"], ["bckd_cls", "bckd_loc"]),
    ],
)
def test_overrides(overrides, names):
    model = instantiate(overridden(*overrides))
    assert list(model.losses) == names
    assert (model.teacher is None) == (not names)
    if "0.5" in overrides[0]:
        assert model.losses["bckd_cls"].weight == 0.5


@pytest.mark.parametrize(
    "before, overrides, expected",
    [
        (None, ["{0:1,2:0}"], {0: 1, 2: 0}),
        ({1: 1}, ["{0:1}"], {1: 1, 0: 1}),  # merges
        ({1: 1}, ["null", "{0:1}"], {0: 1}),
        (L(class_map)(teacher=["a", "b"], student=["b"]), [], {1: 0}),
        (L(class_map)(teacher=["a", "b"], student=["b"]), ["null"], None),
    ],
)
def test_class_maps_of_the_command_line(before, overrides, expected):
    node = distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    node.teacher.class_map = before
    cfg = OmegaConf.create(dict(model=node), flags={"allow_objects": True})
    cfg = LazyConfig.apply_overrides(cfg, [f"model.teacher.class_map={value}" for value in overrides])
    assert instantiate(cfg.model.teacher.class_map) == expected
    instantiate(cfg.model)  # takes it


def test_tap_projectors_of_the_command_line():
    node = distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="crosskd")
    cfg = OmegaConf.create(dict(model=node), flags={"allow_objects": True})
    cfg = LazyConfig.apply_overrides(cfg, ["model.tap_projector_channels=[8,8]"])
    assert cfg.model.tap_projector_channels == [8, 8]
    instantiate(cfg.model)


# ---- another method --------------------------------------------------------------------------------------------------


def test_another_method_of_a_distilled_node():
    node = distill(retinanet(), teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    node.student.num_classes = 2
    before = OmegaConf.to_container(node, resolve=False)
    crosskd = with_method(node, "crosskd")
    assert crosskd.losses == distill(retinanet(), teacher=fcos(), method="crosskd").losses
    assert crosskd.losses.crosskd_loc == get_losses("crosskd", "FCOS")["crosskd_loc"]  # the teacher's family
    assert (crosskd.student, crosskd.teacher) == (node.student, node.teacher)
    assert with_method(node, "alone").losses is None
    assert with_method(node, "config") == node
    assert OmegaConf.to_container(node, resolve=False) == before


def test_a_warm_up_is_a_share_of_the_configs_schedule():
    cfg = load_config("digits/gfl_crosskd.py", ["train.max_iter=1800"], method="tid")
    assert build_losses(cfg.model.losses)["tid"].schedule_iters == 1800
    cfg = load_config("digits/gfl_crosskd.py", ["model.losses.tid.schedule_iters=7"], method="tid")
    assert build_losses(cfg.model.losses)["tid"].schedule_iters == 7


def test_a_method_of_a_baseline_that_names_a_teacher():
    node = with_method(distill(fcos(), teacher="teacher.yaml", method="bckd"), "alone")
    assert list(with_method(node, "bckd").losses) == ["bckd_cls", "bckd_loc"]


def test_a_method_that_cannot_be_taken():
    assert with_method(fcos(), "config") == fcos()
    with pytest.raises(ValueError, match="expected the model node that d2kd.distill.. returns.*'crosskd'"):
        with_method(fcos(), "crosskd")
    with pytest.raises(ValueError, match="did you mean crosskd"):
        with_method(distill(fcos(), teacher=fcos(), method="bckd"), "croskd")
