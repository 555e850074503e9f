"""The summary of a conversion that the command prints."""

from __future__ import annotations

from collections import Counter

from d2kd.conversion.families import FAMILIES
from d2kd.conversion.placement import Conversion

__all__ = ["summary"]


def summary(conversion: Conversion, *, keys: bool = False) -> str:
    """
    Args:
        conversion: what was done.
        keys: list every tensor instead of counting them.

    Returns:
        lines that say what was placed and dropped, why, and which model and images the checkpoint is for.
    """
    architecture, target = conversion.architecture, conversion.target
    bins = "" if architecture.reg_max is None else f", distances in {architecture.reg_max + 1} bins"
    lines = [
        f"{FAMILIES[conversion.detector].title}, ResNet-{architecture.depth} ({target.style} style), "
        f"FPN of {architecture.width} channels, P6 from {architecture.p6_from.upper()}, "
        f"{architecture.num_classes} classes{bins}",
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
    statements = target.statements()
    lines.append(f"Fits the model of configs/{target.config}" + (" with" if statements else " as it is"))
    lines += [f"  {line}" for line in statements]
    says = "as its config says" if target.stated.pixels else f"{target.style} style: the file does not say, see --style"
    lines += [
        f"Its images ({says})",
        f"  input_format = {target.pixels.input_format!r}",
        f"  pixel_mean = {list(target.pixels.mean)}",
        f"  pixel_std = {list(target.pixels.std)}",
    ]
    if assumed := _assumed(conversion):
        lines.append(f"Assumed as in the published files, since this one does not say: {', '.join(assumed)}")
    return "\n".join(lines)


def _assumed(conversion: Conversion) -> list[str]:
    stated = conversion.target.stated
    facts: dict[str, object] = {"the backbone's style": stated.style, "pixel statistics": stated.pixels}
    if conversion.detector == "fcos":
        facts |= {"norm_on_bbox": stated.norm_on_bbox, "centerness_on_reg": stated.centerness_on_reg}
    else:
        facts["anchors"] = stated.anchors
    if conversion.detector in ("atss", "retinanet"):
        facts["box codes"] = stated.stds
    return [name for name, value in facts.items() if value is None]


def _listed(entries: dict[str, str], between: str = ": ") -> list[str]:
    return [f"  {key}{between}{value}" for key, value in entries.items()]


def _parts(conversion: Conversion) -> list[str]:
    parts = Counter(
        "head" if key.startswith("head.") else "ResNet" if key.startswith("backbone.bottom_up.") else "FPN"
        for key in conversion.placed
    )
    return [f"  {parts[part]:4d} of the {part}" for part in ("ResNet", "FPN", "head")]


def _reasons(entries: dict[str, str]) -> list[str]:
    """One line per reason, with its keys if they are few."""
    lines = []
    for reason, count in Counter(entries.values()).items():
        keys = [key for key, value in entries.items() if value == reason]
        named = ", ".join(keys) if count <= 3 else f"{keys[0]} ... {keys[-1]}"
        lines.append(f"  {count:4d}: {reason} ({named})")
    return lines
