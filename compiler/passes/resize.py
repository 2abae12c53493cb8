"""An op as it is with other sizes: of one rank, or counted in another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op

Sizes = Mapping[str, Dim]
"""By the names of the symbols that they stand for."""
O = TypeVar("O", bound=Op)  # noqa: E741  an op


def resized(op: O, sizes: Sizes) -> O:
    """The op with other sizes among its attributes; itself where it has none of them."""
    changes = {name: new for name, old in vars(op).items() if (new := _resized(old, sizes)) is not old}
    return replace(op, **changes) if changes else op


def mentions(size: Dim, sizes: Sizes) -> bool:
    """Whether a size is written with one of the symbols."""
    return any(symbol.name in sizes for symbol in size.symbols())


def _resized(value: object, sizes: Sizes) -> object:
    if isinstance(value, Dim):
        return value.substitute(sizes) if mentions(value, sizes) else value
    if isinstance(value, tuple):
        parts = tuple(_resized(part, sizes) for part in value)
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    return value
