"""The named constants of a model: each number of the spec once, with the key it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsc.compiler.graph.dim import Axis, Dim, Symbol


@dataclass(frozen=True)
class Constant:
    """`name = text  # origin` in the package's dims.py."""

    name: str
    text: str
    origin: str = ""
    """The key in the spec; empty for a formula."""
    made_of: tuple[str, ...] = ()
    """The constants in its formula."""

    @property
    def section(self) -> str:
        """The section of the spec that holds the key; empty for a key of the root and for a formula."""
        section, dot, _ = self.origin.partition(".")
        return section.split("[")[0] if dot else ""


class Constants:
    """An ordered table that builders fill. Adding a constant again is fine, with another value it is a bug."""

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

    def derived(self, name: str, definition: Dim, letter: str | None = None, axis: Axis | None = None) -> Symbol:
        """A size made of other sizes."""
        made_of = dict.fromkeys(symbol.name for symbol in definition.symbols())
        self._add(Constant(name, str(definition), made_of=tuple(made_of)))
        return self._symbols.setdefault(name, Symbol(name, definition=definition, letter=letter, axis=axis))

    def number(self, name: str, value: float | int | tuple[int, ...], origin: str) -> str:
        """A number that is no size, or several. Returns the name."""
        self._add(Constant(name, repr(value), origin))
        return name

    def expression(self, name: str, formula: str, *made_of: str) -> str:
        """A number that Python computes from other constants, which fill the formula's fields: {0}, {1}, ..."""
        self._add(Constant(name, formula.format(*made_of), made_of=made_of))
        return name

    def _add(self, constant: Constant) -> None:
        known = self._table.setdefault(constant.name, constant)
        assert known == constant, f"{constant} was {known}"
