"""train.writers: what MLflow's file store and W&B's offline files hold of real runs."""

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf
from PIL import Image
from wandb.proto import wandb_internal_pb2

from d2kd.engine import ConfigError, default_writers
from d2kd.engine.defaults import own_writers
from d2kd.engine.writers import RunWriter, run_writer
from d2kd.engine.writers.mlflow import MLflowWriter
from d2kd.engine.writers.wandb import WandbWriter
from d2kd.modeling.distillation import preflight
from tests.engine.test_train import run, write_distilled

WRITER = """
from d2kd.engine.writers.{module} import {name}
train.writers = [L({name})(output_dir="${{train.output_dir}}", {arguments})]
train.vis_period = 2
"""


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writers")
    config = "from detectron2.config import LazyCall as L\n" + Path(write_distilled(folder)).read_text()
    for module, name, arguments in (
        ("mlflow", "MLflowWriter", f"tracking_uri='file:{folder}/mlruns', experiment='tiny'"),
        ("wandb", "WandbWriter", "mode='offline'"),
    ):
        (folder / f"{module}.py").write_text(config + WRITER.format(module=module, name=name, arguments=arguments))
    return folder


@pytest.fixture(autouse=True)
def verdict_at_once(monkeypatch):
    """The preflight gives its verdict in the second step; it stops no run of a random teacher."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(preflight, "BATCHES", 1)
    judged = preflight.judge
    monkeypatch.setattr(preflight, "judge", lambda *args, **kwargs: without_stop(judged(*args, **kwargs)))


def without_stop(verdict):
    object.__setattr__(verdict, "stop", None)
    return verdict


def test_mlflow(folder, tmp_path):
    output = tmp_path / "run"
    run(output, "train.max_iter=2", "train.checkpointer.period=1", config=str(folder / "mlflow.py"))
    run(output, "--resume", config=str(folder / "mlflow.py"))
    client = MlflowClient(f"file:{folder}/mlruns")
    (found,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])  # one run, of two parts
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    losses = client.get_metric_history(found.info.run_id, "total_loss")
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [(x.step, x.value) for x in losses] == [(r["iteration"], r["total_loss"]) for r in rows if "total_loss" in r]
    assert [x.step for x in losses] == [0, 1, 2, 3]
    assert found.data.metrics["bbox/AP"] == 0.0 and "loss_kd_bckd_cls" in found.data.metrics
    assert found.data.params["optimizer.lr"] == "0.01" and found.data.params["train.vis_period"] == "2"
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert artifacts == {"config.yaml", "preflight.txt", "sheet"}
    root = next((folder / "mlruns").glob(f"*/{found.info.run_id}/artifacts"))
    assert (root / "config.yaml").read_text().startswith("dataloader:")
    assert (root / "preflight.txt").read_text().startswith("Preflight: ")
    pictures = sorted(path.name for path in (root / "sheet" / "0").iterdir())
    assert pictures == ["0000001.png", "0000003.png"]
    assert Image.open(root / "sheet" / "0" / pictures[0]).size[0] == 1120


def records(path):
    """The records of a .wandb file, which is a LevelDB log after a header of 7 bytes."""
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # a block's end
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline(folder, tmp_path):
    output = tmp_path / "run"
    run(output, "train.max_iter=2", config=str(folder / "wandb.py"))
    (path,) = output.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    losses = [(row["iteration"], row["total_loss"]) for row in history if "total_loss" in row]
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert losses == [(r["iteration"], pytest.approx(r["total_loss"])) for r in rows if "total_loss" in r]
    assert any(row.get("bbox/AP") == 0.0 for row in history)
    assert any("sheet/0" in row or any(key.startswith("sheet/0") for key in row) for row in history)
    said = str(found)
    assert "Preflight: " in said and "optimizer.lr" in said and "training_config.yaml" in said
    assert list(path.parent.glob("files/media/images/**/*.png"))
    assert (output / "wandb_run.txt").read_text() in path.name


def test_an_overwritten_run_is_another_one(folder, tmp_path):
    output, config = tmp_path / "run", str(folder / "mlflow.py")
    short = ("train.max_iter=1", "train.eval_period=0", "train.vis_period=0")
    run(output, *short, config=config)
    first = (output / "mlflow_run.txt").read_text()
    run(output, "--overwrite", *short, config=config)
    assert (output / "mlflow_run.txt").read_text() != first


def test_a_run_that_the_tracker_has_forgotten(folder, tmp_path, caplog, monkeypatch):
    forgotten = "0123456789abcdef0123456789abcdef"
    (tmp_path / "mlflow_run.txt").write_text(forgotten)
    uri = f"file:{folder}/mlruns"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "update_run", raising(MlflowException("no answer")))
        with pytest.raises(MlflowException, match="no answer"):  # it may be there
            MLflowWriter(str(tmp_path), tracking_uri=uri)
    assert (tmp_path / "mlflow_run.txt").read_text() == forgotten
    MLflowWriter(str(tmp_path), tracking_uri=uri).close()
    assert f"MLflow has no run {forgotten}" in caplog.text
    assert (tmp_path / "mlflow_run.txt").read_text() != forgotten


def test_names_and_values_that_mlflow_does_not_take(folder, tmp_path, monkeypatch):
    sizes, log_batch = [], MlflowClient.log_batch

    def counted(self, run_id, **given):
        sizes.extend(len(x) for x in given.values())
        log_batch(self, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    values = "".join(f"  a{i}: {'x' * 7000}\n" for i in range(101))
    (tmp_path / "config.yaml").write_text(f"train:\n{values}  b,c: 1\n")
    uri = f"file:{folder}/mlruns"
    writer = MLflowWriter(str(tmp_path), tracking_uri=uri)
    log(writer, 0, **{f"bbox/AP-dog, {i} (big)": 1.0 for i in range(101)})
    writer.close()
    data = MlflowClient(uri).get_run((tmp_path / "mlflow_run.txt").read_text()).data
    assert len(data.params) == 102 and data.params["train.b_c"] == "1" and data.params["train.a100"] == "x" * 500
    assert len(data.metrics) == 101 and data.metrics["bbox/AP-dog_ 100 _big_"] == 1.0
    assert sizes == [100, 2, 100, 1]


def test_what_the_tracker_has_is_not_written_again(folder, tmp_path):
    """A run that was killed goes on from a checkpoint before the last iteration that the tracker got."""
    uri = f"file:{folder}/mlruns"
    for first, end in ((0, 5), (3, 7)):
        writer = MLflowWriter(str(tmp_path), tracking_uri=uri)
        for step in range(first, end):
            log(writer, step, total_loss=float(step))
        log(writer, end, **{"bbox/AP": 1.0})  # after the last step, whose successor has that number when it goes on
        writer.close()
    client, number = MlflowClient(uri), (tmp_path / "mlflow_run.txt").read_text()
    assert [x.step for x in client.get_metric_history(number, "total_loss")] == list(range(7))
    assert [x.step for x in client.get_metric_history(number, "bbox/AP")] == [5, 7]


def test_wandb_goes_on_with_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {seed: 3}\n")
    for step in (0, 1):
        writer = WandbWriter(str(tmp_path), mode="offline")
        log(writer, step, total_loss=float(step))
        if step == 0:
            try:
                raise ValueError
            except ValueError:
                writer.close()
    writer.close()
    number = (tmp_path / "wandb_run.txt").read_text()
    paths = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{number}.wandb"))
    assert len(paths) == 2
    assert [x.exit.exit_code for x in records(paths[0]) if x.WhichOneof("record_type") == "exit"] == [1]
    # W&B writes its own config.yaml in the same folder, and follows links.
    assert not any(path.is_symlink() for path in paths[0].parent.glob("files/*"))
    assert (paths[0].parent / "files/training_config.yaml").read_text() == "train: {seed: 3}\n"


def test_wandb_says_how_far_it_got(tmp_path, monkeypatch):
    asked = {}

    def init(**options):
        asked.update(options)
        return MagicMock(id=options["id"], summary={"iteration": 4})

    monkeypatch.setattr("wandb.init", init)
    (tmp_path / "wandb_run.txt").write_text("abc")
    assert WandbWriter(str(tmp_path), mode="online").written == 4
    assert (asked["id"], asked["resume"], asked["mode"], asked["name"]) == ("abc", "allow", "online", tmp_path.name)
    assert asked["settings"].finish_timeout == 300  # else a server that has gone would never let the run end


def test_wandb_disabled(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text("train: {seed: 3}\n")
    for step in (0, 1):
        writer = WandbWriter(str(tmp_path), mode="disabled")
        log(writer, step, picture=True, total_loss=1.0)
        writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "wandb_run.txt"]
    assert not any(record.levelname == "WARNING" for record in caplog.records)


class Tracker(RunWriter):
    """Keeps what it gets."""

    error = None

    def begin(self, run_id):
        self.got = []
        return run_id or "7"

    def log_scalars(self, values, iteration):
        if self.error is not None:
            raise self.error
        self.got.append((iteration, values))

    def finish(self, *, failed):
        self.got.append(failed)
        self.log_scalars({}, 0)

    log_config = log_text = log_image = None


def log(writer, step, picture=False, **scalars):
    with EventStorage(step) as storage:
        storage.put_scalars(**scalars, smoothing_hint=False)
        if picture:
            storage.put_image("sheet/0", np.zeros((3, 4, 4), dtype=np.uint8))
        writer.write()


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("error", [MlflowException("no answer"), OSError("disk full"), TypeError("of the tracker's")])
def test_a_tracker_that_fails_stops_nothing_and_is_not_waited_for(tmp_path, caplog, monkeypatch, error):
    clock = [0.0]
    monkeypatch.setattr(run_writer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    writer = Tracker("mine", str(tmp_path))

    def slow_failure(values, iteration):
        clock[0] += 60
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer, "log_scalars", slow_failure)
        log(writer, 0, total_loss=1.0)
    assert f"mine has not got all of iteration 0, and gets nothing for the next 600 s: {error}" in caplog.text
    for clock[0], step in ((659, 1), (660, 2)):
        log(writer, step, total_loss=1.0)
    assert writer.got == [(2, {"total_loss": 1.0})]
    writer.error = error
    writer.close()
    assert f"mine does not know that the run has ended: {error}" in caplog.text
    assert not any(handler.__class__.__name__ == "_Heard" for handler in preflight.logger.handlers)


def test_pictures_that_the_tracker_has_are_not_written_again(tmp_path, monkeypatch):
    writer, pictures = Tracker("mine", str(tmp_path)), []
    monkeypatch.setattr(writer, "log_image", lambda name, image, iteration: pictures.append(iteration))
    writer.written = 4
    for step in (4, 5):
        log(writer, step, picture=True)
    assert pictures == [5]


def test_a_tracker_is_told_how_the_run_ended(tmp_path):
    writer = Tracker("mine", str(tmp_path))
    writer.close()
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        writer.close()
    assert [x for x in writer.got if isinstance(x, bool)] == [False, True]


class Seen(EventWriter):
    images = []

    def write(self):
        self.images += [(name, step) for name, _, step in get_event_storage()._vis_data]


@pytest.mark.parametrize("tensorboard", [True, False])
def test_images_reach_further_writers_and_do_not_pile_up(tmp_path, monkeypatch, tensorboard):
    if not tensorboard:
        monkeypatch.setattr("d2kd.engine.defaults.find_spec", lambda name: None)
    seen = Seen()
    seen.images = []
    writers = default_writers(str(tmp_path), 3, [seen])
    assert seen in writers
    for step in range(2):
        with EventStorage(step) as storage:
            storage.put_image("sheet/0", np.zeros((3, 4, 4), dtype=np.uint8))
            storage.put_scalar("total_loss", 1.0)
            for writer in writers[1:]:
                writer.write()
            assert not storage._vis_data
    assert seen.images == [("sheet/0", 0), ("sheet/0", 1)]


class Closing(EventWriter):
    closed = 0

    def write(self):
        pass

    def close(self):
        type(self).closed += 1


def test_those_before_a_refused_one_are_closed():
    nodes = [{"_target_": f"{__name__}.Closing"}, {"_target_": "torch.nn.Identity"}]
    with pytest.raises(ConfigError, match=r"^train.writers\[1\] makes a Identity"):
        own_writers(OmegaConf.create({"train": {"writers": nodes}}))
    assert Closing.closed == 1


@pytest.mark.parametrize(
    "writers, sentence",
    [
        ("[{_target_: torch.nn.Identity}]", r"^train.writers\[0\] makes a Identity, expected an EventWriter"),
        ("[3]", r"^train.writers is \[3\], expected a list of nodes of EventWriters"),
        ("[{_target_: no.such.Writer}]", r"^train.writers\[0\]._target_ is 'no.such.Writer', which cannot be imported"),
        (
            "[{_target_: d2kd.engine.writers.mlflow.MLflowWriter, output_dir: x, tracking_uri: 'nowhere://x'}]",
            r"^train.writers\[0\] cannot be made: .*nowhere",
        ),
    ],
)
def test_what_is_no_writer_is_refused(tmp_path, writers, sentence):
    with pytest.raises((ConfigError, ValueError), match=sentence):
        run(tmp_path / "run", f"train.writers={writers}")


@pytest.mark.parametrize("module", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed(folder, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"d2kd.engine.writers.{module}")
    with pytest.raises(ImportError, match=rf"^d2kd.engine.writers.{module} needs .*: pip install 'd2kd\[{module}\]'"):
        run(tmp_path / "run", config=str(folder / f"{module}.py"))
