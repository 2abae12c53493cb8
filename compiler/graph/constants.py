"""The named constants of a model: each number of the spec once, with the key it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsc.compiler.graph.dim import Axis, Dim, Symbol


@dataclass(frozen=True)
class Constant:
    """`name = text  # origin` at the top of every emitted file that uses it."""

    name: str
    text: str
    origin: str


class Constants:
    """An ordered table that builders fill. Saying the same constant again is fine, saying it otherwise is not."""

    def __init__(self) -> None:
        self._table: dict[str, Constant] = {}
        self._symbols: dict[str, Symbol] = {}

    def __iter__(self) -> Iterator[Constant]:
        return iter(self._table.values())

    def symbols(self) -> tuple[Symbol, ...]:
        """Every size, in order of first mention."""
        return tuple(self._symbols.values())

    def dim(self, name: str, size: int, origin: str, letter: str | None = None, axis: Axis | None = None) -> Symbol:
        """A size that the spec gives."""
        self._add(Constant(name, repr(size), origin))
        return self._symbols.setdefault(name, Symbol(name, size=size, letter=letter, axis=axis))

    def derived(
        self, name: str, definition: Dim, origin: str = "", letter: str | None = None, axis: Axis | None = None
    ) -> Symbol:
        """A size made of other sizes."""
        self._add(Constant(name, str(definition), origin))
        return self._symbols.setdefault(name, Symbol(name, definition=definition, letter=letter, axis=axis))

    def number(self, name: str, value: float | int, origin: str) -> str:
        """A number that is no size. Returns the name."""
        self._add(Constant(name, repr(value), origin))
        return name

    def expression(self, name: str, text: str, origin: str) -> str:
        """A number computed from other constants by Python, where the formula says more than the figure."""
        self._add(Constant(name, text, origin))
        return name

    def _add(self, constant: Constant) -> None:
        known = self._table.setdefault(constant.name, constant)
        assert known == constant, f"{constant} was {known}"
