"""Tensors under the names that they have on the ranks of a role: kinds of layers are counted once, for all layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dsc.compiler.planner.memory.lines import ACTIVATIONS, MemoryLine, Role
from dsc.compiler.planner.parts.parts import Part

LAYER = re.compile(r"layers\.(\d+)")


def cited(role: Role, parts: Sequence[Part]) -> Role:
    """The role with its own layers in the place of the model's last ones of their kinds, which stand for all."""
    last = {part.kind: part.name for part in parts}
    kinds = {part.name: part.kind for part in parts}
    own = {kinds[name]: name for stage in role.parts for name in stage}
    return replace(role, lines=tuple(_cited(line, last, own) for line in role.lines))


def _cited(line: MemoryLine, last: dict[str, str], own: dict[str, str]) -> MemoryLine:
    kind = line.name.removeprefix(ACTIVATIONS)
    numbers = [LAYER.fullmatch(names.get(kind, "")) for names in (last, own)]
    if not line.name.startswith(ACTIVATIONS) or None in numbers:
        return line
    shift = int(numbers[1][1]) - int(numbers[0][1])  # type: ignore[index]
    return replace(line, tensors=tuple(_moved(text, shift) for text in line.tensors))


def _moved(text: str, shift: int) -> str:
    """layers.59.x.2[0], what the layer before hands on, has another name where that is the embedding."""
    moved = LAYER.sub(lambda found: f"layers.{int(found[1]) + shift}", text, count=1)
    return re.sub(r"^layers\.-1\.x\.\d+", "x", moved)
