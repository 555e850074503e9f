"""The ``d2kd`` command. A subcommand is a module of :mod:`d2kd.cli`, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches

from d2kd import __version__

#: Subcommand -> its module in d2kd.cli, and what it does.
COMMANDS = {
    "init": ("init", "begin a project with your own images: what is in them, and configs to distil on them"),
    "train": ("train", "train or evaluate the model of a config, distilled or plain"),
    "check": ("check", "see what the teacher knows of your data, and what the run will cost, in a minute"),
    "check-adapter": ("check_adapter", "check that d2kd reads your detector correctly"),
    "predict": ("predict", "draw what a student detects on your images, and write it as json"),
    "visualize": ("visualize", "see what distillation does with single images"),
    "compare": ("compare", "train methods x seeds of one config and compare them"),
    "plot": ("plot", "draw what runs have logged: AP, terms, gradient shares, learning rate; or AP against cost"),
    "benchmark": ("benchmark", "measure time and memory of a distilled training step"),
    "export": ("export", "get the student out of a distilled run"),
    "analyze": ("analyze", "compare what teacher, student and exported files cost"),
    "convert": ("convert", "convert an OpenMMLab checkpoint to a Detectron2 one"),
    "data": ("data", "get a public data set of real photographs"),
    "methods": ("methods", "list the distillation methods"),
    "demo": ("demo", "distil a small FCOS on handwritten digits, on a CPU"),
}
WIDTH = max(map(len, COMMANDS))
EPILOG = "\n".join(
    [
        "commands:",
        *(f"  {name:{WIDTH}}  {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "d2kd COMMAND --help says more about a command.",
    ]
)
GET_DETECTRON2 = (
    "Detectron2 is not installed, and it is on no package index: "
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"
)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    parser = argparse.ArgumentParser(
        prog="d2kd",
        usage="d2kd [-h] [--version] COMMAND ...",
        description="Distil big Detectron2 one-stage detectors into small ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"d2kd {__version__}")
    if name in ("-h", "--help", "--version"):
        parser.parse_args([name])
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}."
        found = f"there is no command {name!r}" if name else "no command is given"
        print(f"d2kd: {found}; {hint}", file=sys.stderr)
        return 2
    # Of what Detectron2 and fvcore call at import and in every evaluation; nobody who types d2kd can change it.
    for message in (r"`torch\.jit\.script` is deprecated", r"torch\.meshgrid: in an upcoming release"):
        warnings.filterwarnings("ignore", message)
    try:
        module = importlib.import_module(f"d2kd.cli.{COMMANDS[name][0]}")
    except ModuleNotFoundError as error:
        package = (error.name or "d2kd").partition(".")[0]
        if package == "d2kd":
            raise
        missing = f"The package {package} is not installed, and d2kd needs it: install d2kd again, which brings it."
        print(f"d2kd: {GET_DETECTRON2 if package == 'detectron2' else missing}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nd2kd {name}: interrupted.", file=sys.stderr)
        return 130
    return module.main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
