"""MODEL.DISTILLATION of yacs configs: the student, the method and its losses."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS

import d2kd
from d2kd.modeling import ADAPTER_REGISTRY, DistilledDetector
from d2kd.modeling.adapters import FCOSAdapter
from d2kd.modeling.detectors import GFL, add_gfl_config
from tests.helpers import LEVELS, PIXELS, build_detector, make_batch, run_step
from tests.yacs_projects import ABSENT, KEY, TINY, assert_same_weights, plain, wrapped, write_teacher


class Overriding(RetinaNet):
    def forward(self, batched_inputs):
        return super().forward(batched_inputs)


META_ARCH_REGISTRY.register(Overriding)


@META_ARCH_REGISTRY.register()
def own_detector(cfg):
    detector = RetinaNet(cfg)
    del detector.input_format  # as that of Detectron2's FCOS: it has none
    return detector


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path)


# ---- the student -----------------------------------------------------------------------------------------------------


def built(cfg, seed=3):
    torch.manual_seed(seed)
    model = build_model(cfg)
    return model, torch.get_rng_state()


def test_a_run_and_its_baseline_start_as_the_plain_detector_does(teacher):
    stock, state = built(plain())
    for keys in ({}, {"METHOD": "bckd"}, {"METHOD": "pkd", "LOSSES": ["pkd.projector_channels=[8,8]"]}):
        model, after = built(wrapped(**keys, **teacher))
        assert isinstance(model, DistilledDetector) and type(model.student) is RetinaNet
        assert_same_weights(model, stock)
        model.load_teacher()
        for other in (after, torch.get_rng_state()):
            assert torch.equal(other, state), keys


@pytest.mark.parametrize("method", ["", None])
def test_without_a_method_it_is_the_student_alone(method):
    model, _ = built(wrapped(METHOD=method, LOSSES=["any.thing=1"]))
    assert not model.losses and model.teacher is None
    stock, _ = built(plain())
    expected, found = run_step(stock, make_batch()), run_step(model, make_batch())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_config_is_left_as_it_was(teacher):
    cfg = wrapped(METHOD="bckd", LOSSES=["bckd_loc.weight=3"], **teacher)
    before = cfg.dump()
    cfg.freeze()
    build_model(cfg).load_teacher()
    assert cfg.dump() == before and cfg.is_frozen()
    again = get_cfg()
    d2kd.add_distillation_config(again)
    again.merge_from_other_cfg(type(cfg).load_cfg(before))
    assert again.MODEL.DISTILLATION == cfg.MODEL.DISTILLATION


def test_a_gfl_student():
    cfg = get_cfg()
    add_gfl_config(cfg)
    cfg.merge_from_list([*TINY, "MODEL.GFL.IN_FEATURES", LEVELS, "MODEL.GFL.NORM", ""])
    d2kd.add_distillation_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DistilledDetector", f"{KEY}.STUDENT_META_ARCHITECTURE", "GFL"])
    cfg.merge_from_list([f"{KEY}.METHOD", "ld", *(x for k, v in ABSENT.items() for x in (f"{KEY}.{k}", v))])
    model = build_model(cfg)
    assert type(model.student) is GFL and "ld_main" in model.losses


def test_a_student_from_a_registered_function(teacher):
    model = build_model(wrapped(METHOD="bckd", STUDENT_META_ARCHITECTURE="own_detector", **teacher))
    assert run_step(model, make_batch())["loss_kd_bckd_cls"].item() > 0


@pytest.mark.parametrize("keys", [{}, {"METHOD": "bckd", **ABSENT}], ids=["alone", "distilled"])
@pytest.mark.parametrize("student", ["RetinaNet", "own_detector"])
def test_the_images_channel_order_is_the_configs(student, keys):
    cfg = wrapped(STUDENT_META_ARCHITECTURE=student, **keys)
    cfg.INPUT.FORMAT = "RGB"
    assert build_model(cfg).input_format == "RGB"


def test_a_student_that_overrides_what_d2kd_replaces():
    with pytest.raises(TypeError, match=f"{KEY}.STUDENT_META_ARCHITECTURE is 'Overriding': .* overrides Dense"):
        build_model(wrapped(STUDENT_META_ARCHITECTURE="Overriding"))


def test_a_config_without_the_keys():
    with pytest.raises(ValueError, match=r"no MODEL.DISTILLATION: call d2kd.add_distillation_config\(cfg\)"):
        build_model(plain(TINY, "MODEL.META_ARCHITECTURE", "DistilledDetector"))


# ---- methods and losses ----------------------------------------------------------------------------------------------


def losses_of(*changes, method="bckd"):
    return build_model(wrapped(METHOD=method, LOSSES=list(changes), **ABSENT)).losses


def test_losses_are_the_methods_with_changes():
    assert {name: loss.weight for name, loss in losses_of().items()} == {"bckd_cls": 1.0, "bckd_loc": 4.0}
    assert list(losses_of("bckd_loc=null")) == ["bckd_cls"]
    changed = losses_of("bckd_loc.weight=0.5", " bckd_loc.iou_type = iou ", "bckd_cls.region={name: main}")
    assert (changed["bckd_loc"].weight, changed["bckd_loc"].iou_type) == (0.5, "iou")
    assert changed["bckd_cls"].regions[0].name == "main" and changed["bckd_cls"].weight == 1.0
    assert losses_of()["bckd_loc"].weight == 4.0  # presets stay as they were
    warmed_up = losses_of("ftpd_cls.schedule=null", method="ftpd")["ftpd_cls"]
    assert warmed_up.schedule is None and losses_of(method="ftpd")["ftpd_cls"].schedule is not None


def test_a_warm_up_is_a_share_of_the_schedule():
    cfg = wrapped(METHOD="tid", **ABSENT)
    cfg.SOLVER.MAX_ITER = 1800
    loss = build_model(cfg).losses["tid"]
    loss.iteration = 5
    assert loss.scheduled_weight == pytest.approx(loss.weight / 2)  # of 1800 / 180 iterations


def test_losses_whose_weights_are_all_0_are_refused():
    with pytest.raises(ValueError, match=f"{KEY}.LOSSES .* weights of all bckd's losses are 0: set {KEY}.METHOD"):
        losses_of("bckd_loc.weight=0", "bckd_cls.weight=0")


@pytest.mark.parametrize("changes", [["bckd_loc=null", "bckd_loc.weight=3"], ["bckd_loc.weight=3", "bckd_loc=null"]])
def test_a_loss_that_is_off_stays_off_whatever_the_order(changes):
    assert list(losses_of(*changes)) == ["bckd_cls"]


def test_all_losses_off_is_the_student_alone():
    model = build_model(wrapped(METHOD="bckd", LOSSES=["bckd_loc=null", "bckd_cls=null"], **ABSENT))
    assert not model.losses and model.teacher is None
    model.load_teacher()


def test_losses_on_the_command_line_and_in_a_file(tmp_path):
    cfg = wrapped(METHOD="bckd", LOSSES="['bckd_loc=null', 'bckd_cls.weight=2']", **ABSENT)
    assert list(build_model(cfg).losses) == ["bckd_cls"]
    path = tmp_path / "student.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  DISTILLATION:\n    LOSSES: [bckd_cls=null, bckd_loc.weight=2]\n")
    cfg.merge_from_file(str(path))
    assert {name: loss.weight for name, loss in build_model(cfg).losses.items()} == {"bckd_loc": 2}


@pytest.mark.parametrize(
    "change, said",
    [
        ("bckd_loc", "expected texts 'NAME.FIELD=value' or 'NAME=null'"),
        ("bckd_loc=2.0", "expected 'bckd_loc.FIELD=value' or 'bckd_loc=null'"),
        ("bckd_lok=null", "bckd has no such loss, only bckd_cls, bckd_loc; did you mean bckd_loc"),
        ("bckd_loc.wieght=2", r"with which bckd's bckd_loc cannot be built: .*wieght"),
        ("bckd_loc.weight=-2", r"bckd_loc cannot be built: IoULocalizationKD.weight is -2"),
        ("bckd_loc.weight=[2", "which bckd_loc cannot take"),
        (r"bckd_loc.weight=${oops", "which bckd_loc cannot take"),
        (r"bckd_loc.weight=${oops}", "bckd_loc cannot be built: .*oops"),
    ],
)
def test_changes_that_cannot_be_made(change, said):
    with pytest.raises(ValueError, match=f"{KEY}.LOSSES .*{said}"):
        losses_of(change)


def test_changes_that_are_no_text():
    with pytest.raises(ValueError, match=rf"{KEY}.LOSSES has 4, expected texts"):
        losses_of(4)


def test_an_unknown_method_suggests():
    with pytest.raises(ValueError, match=f"{KEY}.METHOD is 'crosskdd'. .*did you mean crosskd"):
        losses_of(method="crosskdd")


@pytest.mark.parametrize("key", ABSENT)
def test_a_method_needs_a_teacher(key):
    with pytest.raises(ValueError, match=f"{KEY}.{key} is '', but {KEY}.METHOD is 'bckd': give the path"):
        build_model(wrapped(METHOD="bckd", **{**ABSENT, key: ""}))


# ---- pairs that do not match -----------------------------------------------------------------------------------------


def crossed(**keys):
    return build_model(wrapped(METHOD="crosskd", **ABSENT, **keys))


@pytest.mark.parametrize("text", [False, True], ids=["list", "command line"])
def test_class_map_and_tap_projectors(text):
    said = str if text else list
    model = crossed(CLASS_MAP=said([[5, 0], [0, 2]]), TAP_PROJECTOR_CHANNELS=said([8, 16]))
    assert model.teacher.class_map == {5: 0, 0: 2}
    assert list(model.tap_projector_channels) == [8, 16]


def test_without_them():
    model = crossed()
    assert model.teacher.class_map is None and model.tap_projector_channels is None


@pytest.mark.parametrize("pairs", [[0, 1], [[0, 1, 2]], [[0, "1"]], [[0.0, 1]], ["01"]])
def test_what_is_no_class_map(pairs):
    with pytest.raises(ValueError, match=rf"{KEY}.CLASS_MAP has .*, expected pairs \[teacher's class id, student's"):
        crossed(CLASS_MAP=pairs)


def test_a_class_of_the_teacher_twice():
    with pytest.raises(ValueError, match=rf"{KEY}.CLASS_MAP is \[\[1, 0\], \[1, 2\]\], which names .* twice"):
        crossed(CLASS_MAP=[[1, 0], [1, 2]])


class Unfamiliar(DenseDetector):
    """It predicts as FCOS does, and derives from it in nothing that d2kd knows."""

    num_classes = 3
    label_anchors, forward_training, losses = FCOS.label_anchors, FCOS.forward_training, FCOS.losses
    _match_anchors, compute_ctrness_targets = FCOS._match_anchors, FCOS.compute_ctrness_targets

    def __init__(self, fcos):
        super().__init__(fcos.backbone, fcos.head, LEVELS, **PIXELS)
        self.anchor_generator, self.box2box_transform = fcos.anchor_generator, fcos.box2box_transform
        self.center_sampling_radius, self.focal_loss_alpha, self.focal_loss_gamma = 1.5, 0.25, 2.0


@META_ARCH_REGISTRY.register()
def unfamiliar(cfg):
    return Unfamiliar(build_detector("FCOS"))


class UnfamiliarAdapter(FCOSAdapter):
    detector_class = Unfamiliar


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(ADAPTER_REGISTRY, "_obj_map", {**dict(ADAPTER_REGISTRY), "Unfamiliar": UnfamiliarAdapter})
    return UnfamiliarAdapter


def test_the_presets_of_a_family_of_ones_own(adapter, monkeypatch):
    """By the key or by what the adapter says; the key is the nearer. Without either a sentence names the key."""
    keys = dict(STUDENT_META_ARCHITECTURE="unfamiliar", METHOD="crosskd", **ABSENT)
    with pytest.raises(ValueError, match=f"has no preset for Unfamiliar, only .* set {KEY}.STUDENT_FAMILY to"):
        build_model(wrapped(**keys))
    by_key = build_model(wrapped(STUDENT_FAMILY="FCOS", **keys))
    assert by_key.losses["crosskd_loc"].iou_type == "neg_log_iou"
    assert type(by_key.student) is Unfamiliar
    monkeypatch.setattr(adapter, "preset_family", "RetinaNet")
    assert build_model(wrapped(**keys)).losses["crosskd_loc"].iou_type == "giou"
    assert build_model(wrapped(STUDENT_FAMILY="FCOS", **keys)).losses["crosskd_loc"].iou_type == "neg_log_iou"


def test_a_student_family_without_a_preset():
    with pytest.raises(ValueError, match=f"{KEY}.STUDENT_FAMILY is 'Fcos', expected one that crosskd has .*, FCOS"):
        build_model(wrapped(STUDENT_FAMILY="Fcos", METHOD="crosskd", **ABSENT))


def test_crossed_losses_of_another_familys_teacher(teacher):
    keys = dict(STUDENT_META_ARCHITECTURE="RetinaNet", METHOD="crosskd_pkd", **teacher)
    own, theirs = built(wrapped(**keys))[0], built(wrapped(TEACHER_FAMILY="FCOS", **keys))[0]
    assert own.losses["crosskd_loc"].iou_type == "giou" and theirs.losses["crosskd_loc"].iou_type == "neg_log_iou"
    assert theirs.losses["pkd"].extra_repr() == own.losses["pkd"].extra_repr()
    with pytest.raises(
        ValueError, match="TEACHER_FAMILY is 'Fcos', expected one that crosskd_pkd has .*RetinaNet, FCOS"
    ):
        built(wrapped(TEACHER_FAMILY="Fcos", **keys))
