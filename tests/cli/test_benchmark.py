"""d2kd benchmark: what it builds, what it counts, and small runs."""

import gc
import json
import os
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from d2kd.cli import benchmark, benchmark_cases, benchmark_data
from d2kd.cli.benchmark_cases import STUDENT, TEACHER, make_cases
from d2kd.cli.benchmark_data import Size, build_pair, make_batch, methods_of
from d2kd.cli.benchmark_kernels import CHECKPOINTED, KERNELS, SHIPPED, TEXTBOOK, Data, kernel_cases
from d2kd.cli.benchmark_measure import Case, measure, peak_bytes, ratio
from d2kd.cli.benchmark_tables import to_markdown
from d2kd.losses import TaskIntegrationKD
from d2kd.methods import METHODS

CPU = torch.device("cpu")
KIB = 1024
TINY = Size(images=2, canvas=(64, 64), objects=2, classes=5, depths=(18, 18), channels=32)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Each case collects garbage, which is slow among the objects of all tests before."""
    gc.freeze()
    yield
    gc.unfreeze()


def floats(kib):
    return kib * KIB // 4


# ---- detectors and images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, top_in", [("retinanet", None), ("fcos", 32), ("gfl", 32), ("atss", 32)])
def test_a_pair_has_the_depths_and_the_widths_asked_for(name, top_in):
    pair = build_pair(name, replace(TINY, depths=(18, 50), classes=7), CPU)
    assert [detector.training for detector in pair] == [True, False]
    for detector, blocks, res5 in zip(pair, (8, 16), (512, 2048)):
        assert type(detector).__name__ == benchmark_data.FAMILIES[name]
        assert detector.num_classes == 7
        bottom_up = detector.backbone.bottom_up
        assert bottom_up.output_shape()["res5"].channels == res5
        assert sum(len(stage) for stage in bottom_up.stages) == blocks
        assert detector.backbone.top_block.p6.in_channels == (top_in or res5)
        assert {m.out_channels for m in detector.head.cls_subnet if isinstance(m, nn.Conv2d)} == {32}


def test_the_digits_pair_is_that_of_its_configs():
    student, teacher = build_pair("digits_fcos_small", benchmark_data.SIZES["digits"], CPU)
    widths = [x.backbone.bottom_up.output_shape()["res4"].channels for x in (student, teacher)]
    assert widths == [32, 128]


def test_batch_has_boxes_inside_the_images():
    batch = make_batch(replace(TINY, canvas=(64, 96), objects=8), CPU)
    assert [item["image"].shape for item in batch] == [(3, 64, 96)] * 2
    for item in batch:
        instances = item["instances"]
        assert len(instances) == 8
        assert instances.gt_boxes.nonempty().all()
        inside = instances.gt_boxes.clone()
        inside.clip((64, 96))
        assert torch.equal(inside.tensor, instances.gt_boxes.tensor)
        assert 0 <= int(instances.gt_classes.min()) and int(instances.gt_classes.max()) < 5


@pytest.mark.parametrize("detector, unfit", [("fcos", ["ld"]), ("gfl", []), ("atss", ["ld"]), ("digits_atss", [])])
def test_a_detector_has_the_methods_that_fit_it(detector, unfit):
    assert methods_of(detector) == [method for method in METHODS if method not in unfit]


# ---- time and memory -----------------------------------------------------------------------------------------------


def test_peak_is_the_most_held_at_once_not_the_sum_of_allocations():
    def run(_):
        for _ in range(3):
            torch.empty(floats(256))
        a = torch.empty(floats(256))
        b = torch.empty(floats(512))
        del a
        c = torch.empty(floats(128))
        del b, c

    assert peak_bytes(Case("two at once", run), CPU) == 768 * KIB


def test_peak_leaves_out_what_setup_made():
    def run(made):
        return made.neg()

    case = Case("negated", run, setup=lambda: torch.zeros(floats(256)))
    assert peak_bytes(case, CPU) == 256 * KIB
    assert peak_bytes(Case("nothing", lambda _: None), CPU) == 0


def test_peak_leaves_out_the_gradients_of_parameters():
    parameters = [nn.Parameter(torch.ones(floats(256))) for _ in range(3)]

    def run(_):
        torch.stack([x.mul(2).sum() for x in parameters]).sum().backward()

    def setup():
        for parameter in parameters:
            parameter.grad = None

    case = Case("doubled", run, setup)
    assert 768 * KIB <= peak_bytes(case, CPU) < 769 * KIB
    assert 256 * KIB <= peak_bytes(case, CPU, parameters) < 257 * KIB
    assert all(torch.equal(x.grad, torch.full_like(x, 2)) for x in parameters)


def test_rounds_interleave_the_cases():
    order = []
    cases = [
        Case(name, run=order.append, setup=lambda name=name: order.append(f"setup {name}") or name) for name in "ab"
    ]
    measured = measure(cases, 3, CPU)
    assert order == ["setup a", "a", "setup b", "b"] * 4  # memory, then three rounds
    assert {name: len(found["seconds"]) for name, found in measured.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_each_rounds_own():
    seconds = {"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 1.0], "c": [1.0, 4.0, 2.0]}
    measured = {name: {"seconds": values, "peak_bytes": 0} for name, values in seconds.items()}
    assert ratio(measured, ["a"], ["b", "c"]) == 0.5  # of 1/2, 2/5, 9/3


# ---- kernels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_its_formula_in_plain_torch(name):
    torch.manual_seed(0)
    kernel = KERNELS[name](Data(replace(TINY, canvas=(192, 128)), CPU))
    values, gradients = [], []
    for case in kernel_cases(kernel):
        leaves = case.setup()
        case.run(leaves)
        gradients.append([x.grad for maps in leaves for x in maps])
        values.append(gradients[-1][0].norm())
    assert values[0] > 0
    for other in gradients[1:]:
        for ours, theirs in zip(gradients[0], other):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    terms = [kernel.textbook(level, *maps) for level, maps in enumerate(zip(*kernel.student))]
    torch.testing.assert_close(kernel.shipped(kernel.student), torch.stack(terms).sum(), rtol=1e-4, atol=1e-4)


# ---- cases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gfl_pair():
    return build_pair("gfl", TINY, CPU)


def test_cases_are_measured_once_and_a_floor_has_what_its_losses_cross(gfl_pair):
    methods = ["bckd", "crosskd", "ftpd", "ftpd_hetero", "crosskd_pkd"]
    cases, compositions = make_cases(*gfl_pair, make_batch(TINY, CPU), methods)
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    own = {name for x in compositions.values() for name in (x.step, *x.floor, *x.parts)}
    assert own <= set(names)
    crossed = "crossed blocks, tail 1"
    assert compositions["bckd"].floor == [STUDENT, TEACHER]
    assert compositions["crosskd"].floor == compositions["crosskd_pkd"].floor == [STUDENT, TEACHER, crossed]
    assert {"loss: bckd_cls", "loss: bckd_loc", "region: gap"} <= set(compositions["bckd"].parts)
    assert set(compositions["crosskd"].parts) < set(compositions["crosskd_pkd"].parts)
    # Another kind under the same name.
    assert "loss: ftpd_cls_of_ftpd_hetero" in compositions["ftpd_hetero"].parts
    assert "loss: ftpd_box" in compositions["ftpd_hetero"].parts


def test_crossed_blocks_have_a_gradient_at_the_taps_alone(gfl_pair):
    cases, _ = make_cases(*gfl_pair, make_batch(TINY, CPU), ["crosskd"])
    case = next(case for case in cases if case.name.startswith("crossed blocks"))
    taps = case.setup()
    case.run(taps)
    assert all(x.grad is not None for maps in taps.values() for x in maps)
    assert all(maps[0].grad.any() for maps in taps.values())
    assert all(parameter.grad is None for parameter in gfl_pair[1].parameters())


def test_heads_of_two_blocks_are_crossed_in_the_last():
    size = benchmark_data.SIZES["digits"]
    _, compositions = make_cases(*build_pair("digits_fcos", size, CPU), make_batch(size, CPU), ["crosskd"])
    assert compositions["crosskd"].floor[2:] == ["crossed blocks, tail 1"]  # the preset has 2


def test_a_step_is_measured_when_schedules_have_ended(gfl_pair, monkeypatch):
    cases, compositions = make_cases(*gfl_pair, make_batch(TINY, CPU), ["tid"])
    case = next(case for case in cases if case.name == compositions["tid"].step)
    seen = []
    forward = TaskIntegrationKD.forward
    monkeypatch.setattr(
        TaskIntegrationKD, "forward", lambda *args: seen.append(args[0].scheduled_weight) or forward(*args)
    )
    case.run(case.setup())
    assert seen == [1.0]


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Small enough for a test: one size of ResNets, one of growth, one kernel."""
    monkeypatch.setitem(benchmark.SIZES, "small", TINY)
    monkeypatch.setattr(benchmark, "GROWTH_SIZE", TINY)
    monkeypatch.setattr(benchmark, "GROWTH", {"classes": (7,)})
    monkeypatch.setattr(benchmark, "KERNEL_SIZE", TINY)
    monkeypatch.setattr(benchmark, "KERNELS", {"PKD": KERNELS["PKD"]})


def run(tmp_path, capsys, *argv):
    file = tmp_path / "results" / "small.json"
    argv = [*argv, "--rounds", "1", "--device", "cpu", "--threads", "1", "--json", str(file)]
    assert benchmark.main(argv) == 0
    result = json.loads(file.read_text())
    assert result["command"] == "d2kd benchmark " + " ".join(argv)
    printed = capsys.readouterr().out
    assert printed.strip() == to_markdown(result)
    return result, printed


def test_one_command_measures_steps_growth_and_kernels(tiny, tmp_path, capsys):
    argv = "--families gfl --methods bckd crosskd ld --sizes small --growth --kernels".split()
    result, printed = run(tmp_path, capsys, *argv)
    assert result["environment"]["torch"] == torch.__version__
    assert result["environment"]["threads"] == 1
    assert result["warnings"] == []

    pair = result["sizes"]["small"]["gfl"]
    assert pair["logit_bytes"] == 2 * 4 * 5 * (64 + 16 + 4 + 1 + 1)
    assert list(pair["methods"]) == ["bckd", "ld", "crosskd"]
    for found in pair["methods"].values():
        assert found["time_over_student"] > 0 and found["time_over_floor"] > 0
        assert found["regions_and_losses"] > 0
    crossed = pair["methods"]["crosskd"]
    assert crossed["time_over_floor"] < crossed["time_over_student"]
    shares = [pair["parts"][name]["of_student_and_teacher"] for name in (STUDENT, TEACHER)]
    assert sum(shares) == pytest.approx(1)
    assert list(pair["engines"]) == list(benchmark_cases.ENGINES)

    alone, grown = result["growth"]["gfl"]
    assert (alone["logit_bytes"] // 5, alone["logit_bytes"] % 5) == (grown["logit_bytes"] // 7, 0)
    kernel = result["kernels"]["PKD"]
    assert set(kernel["cases"]) == {SHIPPED, TEXTBOOK, CHECKPOINTED}
    assert kernel[TEXTBOOK]["peak"] < 1
    assert re.search(r"^\| crosskd \| \d+\.\d\dx, -?\d+\.\d MiB \|$", printed, re.MULTILINE)
    assert re.search(r"^\| PKD \| ", printed, re.MULTILINE)


def test_all_detectors_of_the_digits_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SIZES, "digits", replace(benchmark.SIZES["digits"], images=2, repeats=1))
    result, _ = run(tmp_path, capsys, *"--methods cwd --sizes digits".split())
    pairs = result["sizes"]["digits"]
    assert list(pairs) == [f"digits_{name}" for name in ("retinanet", "fcos", "fcos_small", "gfl", "atss")]
    assert all(pair["methods"]["cwd"]["time_over_student"] > 0 for pair in pairs.values())
    assert result["growth"] == result["kernels"] == result["ranks"] == {}


def test_ranks_share_a_batch_and_find_the_same(monkeypatch, tmp_path, capsys):
    small = replace(benchmark.SIZES["digits"], images=2, canvas=(64, 64), repeats=1)
    monkeypatch.setitem(benchmark.SIZES, "digits", small)
    result, printed = run(tmp_path, capsys, *"--sizes --ranks 1 2 --families gfl --methods bckd pkd".split())
    methods = result["ranks"]["digits_gfl"]["methods"]
    assert list(methods) == ["bckd", "pkd"] and result["sizes"] == {}
    for found in methods.values():
        alone, shared = found["ranks"]["1"], found["ranks"]["2"]
        assert set(alone["term_differences"].values()) == {alone["gradient_difference"]} == {0.0}
        assert len(shared["seconds"]) == 1 and all(alone["terms"].values())
        for name, difference in shared["term_differences"].items():
            assert difference < 1e-6 or name in found["of_a_ranks_batch"]
    assert methods["bckd"]["of_a_ranks_batch"] == [] and methods["pkd"]["of_a_ranks_batch"] == ["loss_kd_pkd"]
    assert methods["bckd"]["ranks"]["2"]["gradient_difference"] < 1e-5
    assert methods["pkd"]["ranks"]["2"]["term_differences"]["loss_kd_pkd"] > 1e-5
    assert "| pkd | loss_kd_pkd* | " in printed and "| method | of a step | 1 rank | 2 ranks |" in printed


def test_a_detector_without_a_method_has_an_empty_cell():
    cost = {"time_over_student": 1.5, "time_over_floor": 1.01, "peak_above_student": 3 * 2**20}
    pair = {"detectors": "R18 <- R50", "size": "2 images", "logit_bytes": 2**20, "parts": {}, "engines": {}}
    pairs = {"fcos": {**pair, "methods": {"bckd": cost}}, "gfl": {**pair, "methods": {"bckd": cost, "ld": cost}}}
    result = {"warnings": ["busy"], "sizes": {"small": pairs}, "growth": {}, "kernels": {}, "ranks": {}}
    lines = to_markdown(result).splitlines()
    assert lines[0] == "> Warning: busy"
    for line in (
        "**small**: R18 <- R50, 2 images",
        "| method | FCOS | GFL |",
        "| bckd | 1.50x, 3.0 MiB | 1.50x, 3.0 MiB |",
        "| ld |  | 1.50x, 3.0 MiB |",
        "| ld |  | 1.010, 3.0 |",
    ):
        assert line in lines


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch):
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert benchmark.parse_args(["--sizes"]).device == device


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--device", "cuda"], "torch finds no CUDA device"),
        (["--rounds", "0"], "expected a whole number >= 1, found 0"),
        (["--ranks", "3"], "--ranks 3, but the digits' batch of 8 images is shared evenly: use a divisor"),
        (["--methods", "bckt"], "bckt is none of bckd"),
        ("--families gfl fcos --methods ld bckd --sizes small".split(), "FCOS has no ld, it has bckd, crosskd, ftpd,"),
    ],
)
def test_values_that_cannot_be_measured_are_refused(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.parse_args(argv)
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_a_busy_machine_is_warned_of_where_threads_are_not_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def warned(*argv, load):
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
        return benchmark.warnings_of(benchmark.parse_args(["--sizes", *argv]), CPU)

    assert "4 threads on 4 cores whose load is 2.0" in warned(load=2.0)[0]
    assert warned(load=0.1) == []
    assert warned("--threads", "1", load=2.0) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert warned(load=2.0) == []


def test_help_says_how_memory_is_measured(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("max_memory_allocated", "memory events", "floor", "example"))
