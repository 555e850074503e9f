"""The runs of an experiment as jobs."""

from detectron2.config import LazyConfig

from d2kd.experiments import build_jobs, plan_run
from d2kd.experiments.training_jobs import train_command
from tests.experiments.small import experiment


def test_detectors_share_a_teacher(tmp_path):
    jobs = build_jobs(experiment(tmp_path, detectors=("fcos", "fcos_small"), methods=("crosskd",)))
    assert [(job.name, job.needs) for job in jobs] == [
        ("fcos teacher", ()),
        ("fcos crosskd seed 0", ("fcos teacher",)),
        ("fcos_small crosskd seed 0", ("fcos teacher",)),
    ]


def test_a_folder_with_a_quote_reaches_the_config(tmp_path):
    run = plan_run(experiment(tmp_path / "it's here", overrides=("a.b=1",)), "fcos", "crosskd", 0)
    command = train_command(run, "python", "tools/train_net.py")
    assert command[:4] == ["python", "tools/train_net.py", "--config-file", str(run.config)]
    assert command[-2] == "a.b=1"
    changed = LazyConfig.apply_overrides(LazyConfig.load(str(run.config)), [command[-1]])
    assert changed.train.output_dir == str(run.folder)
