"""What the tool prints about a conversion."""

from __future__ import annotations

from collections import Counter

from d2kd.conversion.convert import Conversion
from d2kd.conversion.families import FAMILIES

__all__ = ["summary"]


def summary(conversion: Conversion, *, keys: bool = False) -> str:
    """
    Args:
        conversion: what was done.
        keys: list every tensor, not their numbers.

    Returns:
        lines that say what was placed and dropped, why, and which model and images the checkpoint is for.
    """
    layout, fit = conversion.layout, conversion.fit
    bins = "" if layout.reg_max is None else f", distances in {layout.reg_max + 1} bins"
    lines = [
        f"{FAMILIES[conversion.detector].title}, ResNet-{layout.depth} ({fit.style} style), FPN of {layout.width} "
        f"channels, P6 from {layout.p6_from.upper()}, {layout.num_classes} classes{bins}",
        f"Placed: {len(conversion.placed)} tensors",
        *(_listed(conversion.placed, " <- ") if keys else _parts(conversion)),
        f"Dropped: {len(conversion.dropped)}",
        *(_listed(conversion.dropped) if keys else _reasons(conversion.dropped)),
    ]
    if conversion.filled:
        lines += [
            f"Filled: {len(conversion.filled)}",
            *(_listed(conversion.filled) if keys else _reasons(conversion.filled)),
        ]
    statements = fit.statements()
    lines.append(f"Fits the model of configs/{fit.config}" + (" with" if statements else " as it is"))
    lines += [f"  {line}" for line in statements]
    lines += [
        f"Its images ({fit.style} style: the file does not say, see --style)",
        f"  input_format = {fit.input_format!r}",
        f"  pixel_mean = {list(fit.pixel_mean)}",
        f"  pixel_std = {list(fit.pixel_std)}",
    ]
    return "\n".join(lines)


def _listed(entries: dict[str, str], between: str = ": ") -> list[str]:
    return [f"  {key}{between}{value}" for key, value in entries.items()]


def _parts(conversion: Conversion) -> list[str]:
    parts = Counter(
        "head" if key.startswith("head.") else "ResNet" if key.startswith("backbone.bottom_up.") else "FPN"
        for key in conversion.placed
    )
    return [f"  {parts[part]:4d} of the {part}" for part in ("ResNet", "FPN", "head")]


def _reasons(entries: dict[str, str]) -> list[str]:
    """One line a reason, with the keys where they are few."""
    lines = []
    for reason, count in Counter(entries.values()).items():
        keys = [key for key, value in entries.items() if value == reason]
        named = ", ".join(keys) if count <= 3 else f"{keys[0]} ... {keys[-1]}"
        lines.append(f"  {count:4d}: {reason} ({named})")
    return lines
