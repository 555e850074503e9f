"""Which runs an experiment is made of, and whether they are there already."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from d2kd.experiments import ALONE, ROOT
from d2kd.experiments.plan import plan_run, plan_runs, plan_teacher, request, teacher_is_ready
from tests.experiments.small import experiment


def test_plan_pairs_seeds_and_evaluates_at_three_quarters(tmp_path):
    two = dict(detectors=("fcos", "retinanet"), seeds=(0, 1))
    runs = plan_runs(experiment(tmp_path, **two, max_iter=800, overrides=("a=1",)))
    names = [(run.detector, run.method, run.seed) for run in runs]
    assert names[:5] == [
        ("fcos", ALONE, 0),
        ("fcos", "crosskd", 0),
        ("retinanet", ALONE, 0),
        ("retinanet", "crosskd", 0),
        ("fcos", ALONE, 1),
    ]
    assert len(runs) == 8 and len({run.folder for run in runs}) == 8
    for run in runs:
        assert run.overrides[:3] == (f"train.seed={run.seed}", "train.max_iter=800", "train.eval_period=100")
        assert run.overrides[-1] == "a=1" and run.folder == tmp_path / run.detector / run.method / f"seed{run.seed}"
    assert [run.config.name for run in runs[:2]] == ["fcos_baseline.py", "fcos_crosskd.py"]


def test_plan_takes_the_configs_schedule_and_names_missing_configs(tmp_path):
    run = plan_run(experiment(tmp_path), "fcos", "crosskd", 0)
    assert run.max_iter == run.load_config().train.max_iter > 0
    with pytest.raises(ValueError, match="fcos_nokd.py.*fcos_crosskd.py"):
        plan_run(experiment(tmp_path), "fcos", "nokd", 0)


def test_every_config_finds_its_teacher(tmp_path):
    for path in sorted((ROOT / "configs/digits").glob("*_crosskd.py")):
        detector = path.stem.removesuffix("_crosskd")
        run, checkpoint = plan_teacher(experiment(tmp_path), detector)
        assert run.load_config().train.output_dir == str(Path(checkpoint).parent) == str(run.folder)
        assert run.config.stem.endswith("_teacher") and run.config.stem.startswith(detector.split("_")[0])


def test_request_is_stable_and_knows_what_matters(tmp_path):
    crosskd = request(plan_run(experiment(tmp_path), "fcos", "crosskd", 0))
    code = f"""
import json, sys
from pathlib import Path
from d2kd.experiments.plan import Experiment, plan_run, request
m = Experiment(Path({str(ROOT / "configs/digits")!r}), Path("elsewhere"), ("fcos",), ("crosskd",), (0,))
print(json.dumps(request(plan_run(m, "fcos", "crosskd", 0))))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == crosskd
    other = request(plan_run(experiment(tmp_path, overrides=("optimizer.lr=1e-4",)), "fcos", "crosskd", 0))
    assert other["config_sha256"] != crosskd["config_sha256"]


def test_teacher_is_ready_only_when_its_checkpoint_is_whole(tmp_path):
    final, last = tmp_path / "model_final.pth", tmp_path / "last_checkpoint"
    assert not teacher_is_ready(str(final))
    final.write_bytes(b"half")
    last.write_text("model_0000499.pth")
    assert not teacher_is_ready(str(final))
    last.write_text("model_final.pth")
    assert teacher_is_ready(str(final))
    last.unlink()  # copied here by a person
    assert teacher_is_ready(str(final))
    assert teacher_is_ready("https://somewhere/model_final.pth")
