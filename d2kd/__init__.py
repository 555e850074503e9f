"""d2kd: distil big Detectron2 one-stage detectors into small ones.

The public names load on first use (PEP 562), so that ``import d2kd.losses`` and ``import d2kd.regions`` need
torch and fvcore only, and not Detectron2.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for mypy and editors; at run time a name is loaded when it is first used
    from d2kd.config import add_distillation_config, distill, get_config
    from d2kd.methods import list_methods
    from d2kd.modeling import DistilledDetector, check_adapter, student

__version__ = "0.1.0"  # the only place: setup.py reads it from here

_HOME = {
    "DistilledDetector": "d2kd.modeling",
    "add_distillation_config": "d2kd.config",
    "check_adapter": "d2kd.modeling",
    "distill": "d2kd.config",
    "get_config": "d2kd.config",
    "list_methods": "d2kd.methods",
    "student": "d2kd.modeling",
}

__all__ = [
    "DistilledDetector",
    "__version__",
    "add_distillation_config",
    "check_adapter",
    "distill",
    "get_config",
    "list_methods",
    "student",
]


def _check_versions() -> None:
    """
    Refuse what d2kd cannot run with (docs/compatibility.md), without the cost of importing torch.

    Raises:
        ImportError: Python or torch is too old.
    """
    if sys.version_info < (3, 10):  # noqa: UP036  (pip sees to it, a clone on the path does not)
        raise ImportError(f"d2kd needs Python 3.10 or later, and this is {sys.version.split()[0]}.")
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text(encoding="utf-8") if file and file.is_file() else ""
    found = re.search(r"^__version__\b.*?['\"]((\d+)\.(\d+)[^'\"]*)", text, re.MULTILINE)
    if found and (int(found[2]), int(found[3])) < (2, 6):
        raise ImportError(f"d2kd needs torch 2.6 or later, and {found[1]} is installed.")


_check_versions()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'd2kd' has no attribute {name!r}; it has {', '.join(__all__)} and its submodules, "
            f"which are imported by name (import d2kd.losses)"
        )
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
