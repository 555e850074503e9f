"""d2kd benchmark: what it builds, what it counts, and one small run of each detector."""

import json
import re

import pytest
import torch

from d2kd.cli import benchmark
from d2kd.cli import benchmark_cases as cases_of
from d2kd.cli.benchmark import Case
from d2kd.losses import TaskIntegrationKD, binary_classification_kd
from d2kd.methods import METHODS, get_losses

CPU = torch.device("cpu")
KIB = 1024


def floats(kib):
    return kib * KIB // 4


@pytest.mark.parametrize("depth, res5", [(18, 512), (50, 2048)])
@pytest.mark.parametrize("name, top_in", [("retinanet", None), ("fcos", 32), ("gfl", 32), ("atss", 32)])
def test_detector_has_the_depth_and_the_widths_asked_for(name, top_in, depth, res5):
    detector = benchmark.build_detector(name, depth=depth, channels=32, classes=7)
    assert type(detector).__name__ == benchmark.FAMILIES[name]
    assert detector.num_classes == 7
    bottom_up = detector.backbone.bottom_up
    assert bottom_up.output_shape()["res5"].channels == res5
    assert sum(len(stage) for stage in bottom_up.stages) == {18: 8, 50: 16}[depth]
    assert detector.backbone.top_block.p6.in_channels == (top_in or res5)
    assert {m.out_channels for m in detector.head.cls_subnet if isinstance(m, torch.nn.Conv2d)} == {32}


def test_batch_has_boxes_inside_the_images():
    batch = benchmark.make_batch(2, (64, 96), 5, 8, CPU)
    assert [item["image"].shape for item in batch] == [(3, 64, 96)] * 2
    for item in batch:
        instances = item["instances"]
        assert len(instances) == 8
        assert instances.gt_boxes.nonempty().all()
        inside = instances.gt_boxes.clone()
        inside.clip((64, 96))
        assert torch.equal(inside.tensor, instances.gt_boxes.tensor)
        assert 0 <= int(instances.gt_classes.min()) and int(instances.gt_classes.max()) < 5


def test_restated_kernel_is_the_shipped_one():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    weight = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    shipped = binary_classification_kd(student, teacher, weight=weight, dim=2, reduction="sum")
    restated = cases_of.restated_kernel(student, teacher, weight=weight, dim=2)
    torch.testing.assert_close(restated, shipped)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (restated, shipped)]
    torch.testing.assert_close(*gradients)


def test_peak_is_the_most_held_at_once_not_the_sum_of_allocations():
    def run(_):
        for _ in range(3):
            torch.empty(floats(256))
        a = torch.empty(floats(256))
        b = torch.empty(floats(512))
        del a
        c = torch.empty(floats(128))
        del b, c

    assert benchmark.peak_bytes(Case("two at once", run), CPU) == 768 * KIB


def test_peak_leaves_out_what_setup_made():
    def run(made):
        return made.neg()

    case = Case("negated", run, setup=lambda: torch.zeros(floats(256)))
    assert benchmark.peak_bytes(case, CPU) == 256 * KIB
    assert benchmark.peak_bytes(Case("nothing", lambda _: None), CPU) == 0


def test_saved_counts_a_storage_once_and_residents_not_at_all():
    parameter = torch.ones(floats(64), requires_grad=True)

    def run(leaf):
        doubled = leaf * 2  # saves nothing but a number
        product = doubled * parameter  # saves both
        (product + doubled[: floats(16)].exp().sum() + doubled.square()).sum().backward()  # exp's result; doubled again

    case = Case("sums", run, setup=lambda: torch.ones(floats(64), requires_grad=True))
    resident = {parameter.untyped_storage().data_ptr()}
    assert benchmark.saved_bytes(case, resident) == (64 + 16) * KIB
    assert benchmark.saved_bytes(case, set()) == (64 + 64 + 16) * KIB


def test_rounds_interleave_the_cases_and_keep_setup_off_the_clock():
    order = []
    cases = [
        Case(name, run=order.append, setup=lambda name=name: order.append(f"setup {name}") or name) for name in "ab"
    ]
    times = benchmark.measure_time(cases, 3, CPU)
    assert order == ["setup a", "a", "setup b", "b"] * (benchmark.WARMUP_ROUNDS + 3)
    assert [[len(values) for values in record.values()] for record in times] == [[3, 3]] * 2


SMALL = (
    "--image-size 64 64 --images 2 --depth-student 18 --depth-teacher 18 --channels 32 --classes 5 --steps 1".split()
)


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "gfl", "atss"])
def test_a_small_run_measures_every_part(detector, tmp_path, capsys):
    file = tmp_path / "results" / "small.json"
    # bckd, crosskd, and those whose losses have schedules, which must be measured at their full weight
    methods = {"bckd": ["regions"], "crosskd": ["crossed output", "regions"], "ftpd": ["regions"], "tid": ["regions"]}
    argv = ["--detector", detector, "--methods", *methods, *SMALL, "--device", "cpu", "--json", str(file)]
    assert benchmark.main(argv) == 0
    table = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["command"] == "d2kd benchmark " + " ".join(argv)
    assert result["environment"]["torch"] == torch.__version__
    assert result["config"]["image_size"] == [64, 64]

    names = [(case["method"], case["name"]) for case in result["cases"]]
    expected = [("", benchmark.STUDENT), ("", benchmark.TEACHER), *((method, "distilled step") for method in methods)]
    for method, others in methods.items():
        losses = get_losses(method, benchmark.FAMILIES[detector])
        expected += [(method, part) for part in [*others, *(k for k, node in losses.items() if node.weight > 0)]]
    assert names == [*expected, ("", benchmark.ANALYTIC), ("", benchmark.RESTATED)]
    assert all(name in table for _, name in names)

    by_name = dict(zip(names, result["cases"]))
    student, teacher = result["cases"][:2]
    for clock in ("wall", "cpu"):
        assert student["ratio"][clock] + teacher["ratio"][clock] == pytest.approx(1)
        assert all(case["seconds"][clock] >= 0 for case in result["cases"])
    assert all(case["seconds"]["wall"] > 0 for case in result["cases"])

    assert teacher["bytes"]["saved"] == 0 < teacher["bytes"]["peak"]
    for method in methods:
        step = by_name[method, "distilled step"]["bytes"]
        assert step["saved"] > student["bytes"]["saved"]
        assert step["peak"] >= student["bytes"]["peak"]
        assert by_name[method, "regions"]["bytes"]["saved"] == 0
    assert by_name["crosskd", "crossed output"]["bytes"]["saved"] > 0
    shipped, restated = (by_name["", name]["bytes"] for name in (benchmark.ANALYTIC, benchmark.RESTATED))
    assert shipped["saved"] < restated["saved"]


@pytest.mark.parametrize("detector, unfit", [("fcos", ["ld"]), ("gfl", [])])
def test_the_methods_measured_are_those_that_fit(detector, unfit, capsys):
    pair = [benchmark.build_detector(detector, depth=18, channels=32, classes=5) for _ in range(2)]
    assert cases_of.methods_for(*pair) == [method for method in METHODS if method not in unfit]
    assert capsys.readouterr().out.count("Without") == len(unfit)


def test_a_distilled_step_is_measured_when_schedules_have_ended():
    student, teacher = (benchmark.build_detector("gfl", depth=18, channels=32, classes=5) for _ in range(2))
    batch = benchmark.make_batch(2, (64, 64), 5, 2, CPU)
    case = next(x for x in benchmark.make_cases(student, teacher, batch, ["tid"]) if x.group == "tid")
    seen = []
    hook = TaskIntegrationKD.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIntegrationKD, "forward", lambda *args: seen.append(args[0].scheduled_weight) or hook(*args))
        case.run(case.setup())
    assert seen == [1.0]


def test_no_method_measures_the_baseline_alone(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert benchmark.main(["--detector", "retinanet", *SMALL, "--device", "cpu", "--json", str(file), "--methods"]) == 0
    assert [case["method"] for case in json.loads(file.read_text())["cases"]] == [""] * 4
    assert benchmark.RESTATED in capsys.readouterr().out


def test_a_method_that_does_not_fit_is_one_sentence(capsys):
    assert benchmark.main(["--detector", "fcos", *SMALL, "--device", "cpu", "--methods", "ld"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("d2kd benchmark: ") and error.count("\n") == 1 and "FCOS" in error


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch):
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert benchmark.parse_args([]).device == device


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--detector", "fcos", "--channels", "48"], "--channels is 48: .* multiple of 32"),
        (["--device", "cuda"], "torch finds no CUDA device"),
        (["--steps", "0"], "expected at least 1, found 0"),
        (["--methods", "bckt"], "invalid choice: 'bckt'"),
    ],
)
def test_values_that_cannot_be_measured_are_refused(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.parse_args(argv)
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_help_says_how_memory_is_measured(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("max_memory_allocated", "torch.profiler", "saved_tensors_hooks", "Example"))
