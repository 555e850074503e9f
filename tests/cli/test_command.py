"""`d2kd` and `python -m d2kd`: the subcommands, and the errors that end them in a sentence."""

import io
import re
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf.errors import ConfigKeyError

import d2kd
from d2kd.__main__ import COMMANDS, main
from d2kd.cli import run_command
from d2kd.losses import BinaryClassificationKD
from d2kd.methods import METHODS

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "d2kd"]


def test_help_names_every_command_and_imports_none():
    code = """
import sys
from d2kd.__main__ import main

try:
    main(["--help"])
finally:
    print(sorted({"torch", "detectron2", "omegaconf", "numpy", "d2kd.cli"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *text, imported = done.stdout.splitlines()
    assert imported == "[]"
    listed = re.findall(r"^  ([\w-]+)  +\w", "\n".join(text[text.index("commands:") :]), flags=re.MULTILINE)
    assert listed == list(COMMANDS)


def test_python_m_and_version():
    done = subprocess.run([*COMMAND, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"d2kd {d2kd.__version__}\n"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"compare", "demo"}))
def test_a_command_says_its_own_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: d2kd {name} ")
    assert "python tools/" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_and_exit_status_are_the_commands(name, monkeypatch):
    given = []
    module = types.SimpleNamespace(main=lambda argv: given.append(argv) or 3)
    monkeypatch.setitem(sys.modules, f"d2kd.cli.{COMMANDS[name][0]}", module)
    assert main([name, "--option", "key=value"]) == 3
    assert given == [["--option", "key=value"]]


@pytest.mark.parametrize("name, hint", [("trian", "did you mean train?"), ("zzz", ", ".join(COMMANDS))])
def test_an_unknown_command_is_a_sentence(name, hint, capsys):
    assert main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"d2kd: there is no command {name!r}; ") and hint in line


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("detectron2", "Detectron2 is not installed.*pip install"),
        ("omegaconf", "The package omegaconf is not installed"),
    ],
)
def test_without_a_package_a_sentence_says_where_to_get_it(package, says, monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "d2kd.cli" or name.startswith(("d2kd.cli.", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(package), *sys.meta_path])
    assert main(["train", "--help"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)


class Missing:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# ---- errors ----------------------------------------------------------------------------------------------------------


def fails(error):
    raise error


@pytest.mark.parametrize(
    "function",
    [
        lambda args: d2kd.distill({}, teacher="x"),
        lambda args: d2kd.methods.describe("zzz"),
        lambda args: instantiate(L(BinaryClassificationKD)(wieght=1)),
        lambda args: open("no/such/file"),
        lambda args: fails(ConfigKeyError("no key")),
        lambda args: DatasetCatalog.get("nothere"),
    ],
)
def test_a_users_error_is_one_line(function, capsys):
    assert run_command("d2kd x", function, Namespace()) == 2
    assert re.fullmatch(r"(Error when instantiating .*\n)?d2kd x: .+\n", capsys.readouterr().err)


def test_a_file_name_that_a_terminal_cannot_show(monkeypatch):
    """Bytes that are no UTF-8, and letters of another alphabet than the terminal's."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_command("d2kd x", lambda args: print("gr\udcfcn", "鳥"), Namespace()) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"gr\\udcfcn \\u9ce5\n"


def test_an_interrupt_is_one_line(capsys):
    assert run_command("d2kd x", lambda args: fails(KeyboardInterrupt("Call it again.")), Namespace()) == 130
    assert capsys.readouterr().err == "\nd2kd x: interrupted. Call it again.\n"


def test_an_interrupt_while_a_command_is_imported(monkeypatch, capsys):
    monkeypatch.setattr("d2kd.__main__.importlib.import_module", lambda name: fails(KeyboardInterrupt()))
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "\nd2kd methods: interrupted.\n"


@pytest.mark.parametrize(
    "function",
    [lambda args: fails(ValueError()), lambda args: instantiate(L(fails)(error=TypeError())), lambda args: {}["x"]],
)
def test_what_may_be_a_defect_keeps_its_traceback(function):
    with pytest.raises((ValueError, TypeError, KeyError)):
        run_command("d2kd x", function, Namespace())


#: A command line of each command that is refused after it was parsed.
REFUSED = {
    "train": "--config-file no.py",
    "check": "--config-file no.py",
    "check-adapter": "--config-file no.py",
    "compare": "--config-file no.py",
    "plot": "no",
    "benchmark": "--sizes digits --families gfl --methods ld --json .",
    "export": "no.py no.pth --output x.pth",
    "convert": "no.pth x.pth --detector gfl --depth 18",
    "methods": "no",
    "demo": "--output file",
    "init": "file --train a b --val a b",
    "data": "get cards --from no.zip",
    "visualize": "--config-file no.py --weights no.pth",
    "predict": "--config-file no.py --weights no.pth no.jpg",
    "analyze": "no.py",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_traceback_is_shown_on_demand(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    argv = [name, *REFUSED[name].split()]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"d2kd {name}: ")
    assert main([*argv, "--traceback"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):" and last == line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--nonsense"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"d2kd {name}: ") and line.endswith(f"(d2kd {name} --help).")


# ---- d2kd methods ----------------------------------------------------------------------------------------------------


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{d2kd.list_methods()}\n" and re.findall(r"^\w+$", printed, flags=re.MULTILINE) == list(METHODS)
    assert main(["methods", "crosskd"]) == 0
    assert capsys.readouterr().out == f"{d2kd.list_methods()['crosskd']}\n"


def test_an_unknown_method(capsys):
    assert main(["methods", "croskd"]) == 2
    assert re.fullmatch("d2kd methods: Unknown method 'croskd'.* did you mean crosskd.*\n", capsys.readouterr().err)
