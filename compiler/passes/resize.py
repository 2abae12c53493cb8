"""Ops of other sizes: what a rank has of a weight that ranks share out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op

O = TypeVar("O", bound=Op)  # noqa: E741  an op


def mentions(dim: Dim, sizes: Mapping[str, Dim]) -> bool:
    return any(symbol.name in sizes for symbol in dim.symbols())


def resized(op: O, sizes: Mapping[str, Dim]) -> O:
    """The op with other sizes among its attributes."""
    changes = {name: new for name, old in vars(op).items() if (new := _resized(old, sizes)) is not old}
    return replace(op, **changes) if changes else op


def _resized(value: object, sizes: Mapping[str, Dim]) -> object:
    if isinstance(value, Dim):
        return value.substitute(sizes) if mentions(value, sizes) else value
    if isinstance(value, tuple) and any(isinstance(one, Dim) and mentions(one, sizes) for one in value):
        return tuple(_resized(one, sizes) for one in value)
    return value
