"""Every command that takes overrides refuses those for keys that do not exist."""

import pytest

from d2kd.cli import check, compare, export, train

CONFIG = "digits/gfl_crosskd.py"
SENTENCE = (
    "The override 'optimiser.lr=1' is for optimiser, which this config does not have: did you mean optimizer.lr? A new "
    "key is +key=value."
)


@pytest.mark.parametrize(
    "command, argv",
    [
        (train, ["--config-file", CONFIG, "optimiser.lr=1"]),
        (train, ["--config-file", CONFIG, "--method", "alone", "optimiser.lr=1"]),
        (train, ["--config-file", CONFIG, "--eval-only", "optimiser.lr=1"]),
        (compare, ["--config-file", CONFIG, "--output", "out", "optimiser.lr=1"]),
        (export, [CONFIG, "model.pth", "--output", "out/student.pth", "optimiser.lr=1"]),
        (check, ["--config-file", CONFIG, "optimiser.lr=1"]),
    ],
    ids=["train", "method", "evaluation", "compare", "export", "check"],
)
def test_a_key_that_does_not_exist(command, argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) == 2
    assert capsys.readouterr().err == f"{command.COMMAND}: {SENTENCE}\n"
    assert not list(tmp_path.iterdir())


def test_reserved_keys_and_reports_of_a_comparison_may_have_a_plus(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--config-file", CONFIG, "+train.seed=3"])
    assert "train.seed is set by this tool: use --seeds" in capsys.readouterr().err
    argv = ["--config-file", CONFIG, "+a.b=1", "--report", "+dataloader.test.x=1"]
    experiment = compare.experiment_of(compare.parse_args(argv))
    assert (experiment.overrides, experiment.report) == (("+a.b=1",), ("+dataloader.test.x=1",))


@pytest.mark.parametrize("command", [train, compare, export, check])
def test_the_help_names_new_keys(command):
    assert "+key=value" in command.argument_parser().format_help().lower()


def test_partial_weights_are_for_evaluation(capsys):
    with pytest.raises(SystemExit):
        train.main(["--config-file", CONFIG, "--allow-partial"])
    assert "--allow-partial is for --eval-only" in capsys.readouterr().err
