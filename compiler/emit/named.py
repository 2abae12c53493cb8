"""Numbers that know how they are written: what a function makes of them prints as the code that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from dsc.compiler.graph.constants import Constants
from dsc.spec.base import Section
from dsc.spec.words import dotted

S = TypeVar("S", bound=Section)


class _Named:
    formula: str

    @classmethod
    def of(cls, value: Any, formula: str) -> Self:
        number = cls(value)  # type: ignore[call-arg]  # an int or a float
        number.formula = formula
        return number

    def __repr__(self) -> str:
        return self.formula

    def _operand(self) -> str:
        return f"({self.formula})" if " " in self.formula else self.formula


class NamedInt(_Named, int):
    """Adds up and is multiplied, as the layers of groups are, and takes roots."""

    def __add__(self, other: int) -> NamedInt:
        return NamedInt.of(int(self) + int(other), f"{self!r} + {other!r}")

    def __radd__(self, other: int) -> NamedInt:
        """Also what sum() begins with, which is 0."""
        return NamedInt.of(int(other) + int(self), f"{other!r} + {self!r}" if other else self.formula)

    def __mul__(self, times: int) -> NamedInt:
        return NamedInt.of(int(self) * times, f"{self._operand()} * {times!r}") if times != 1 else self

    def __rmul__(self, items: object) -> Any:
        """A list repeated this many times; with anything else, what a plain number gives."""
        if not isinstance(items, list):
            return NotImplemented
        return NamedList.of(items * int(self), f"{items!r} * {self._operand()}")

    def __pow__(self, exponent: float) -> NamedFloat:  # type: ignore[override]
        return NamedFloat.of(int(self) ** exponent, f"{self._operand()}**{exponent!r}")


class NamedFloat(_Named, float):
    """Is multiplied by another named number, and rounded."""

    def __mul__(self, other: NamedInt | NamedFloat) -> NamedFloat:  # type: ignore[override]
        return NamedFloat.of(float(self) * float(other), f"{self._operand()} * {other._operand()}")

    def __round__(self, digits: int | None = None) -> NamedInt | NamedFloat:  # type: ignore[override]
        if digits is None:
            return NamedInt.of(round(float(self)), f"round({self!r})")
        return NamedFloat.of(round(float(self), digits), f"round({self!r}, {digits})")


class NamedList(_Named, list[str]):
    """One for each layer."""

    def __add__(self, other: list[str]) -> NamedList:  # type: ignore[override]
        return NamedList.of([*self, *other], f"{self!r} + {other!r}")


def with_names(section: S, constants: Constants) -> S:
    """The same section, its numbers named after the constants that come from their keys."""
    return _section(section, {constant.origin: constant.name for constant in constants if constant.origin}, ())


def _section(section: S, names: Mapping[str, str], key: tuple[str | int, ...]) -> S:
    fields = (*type(section).model_fields, *(section.model_extra or ()))
    return section.model_copy(update={name: _value(getattr(section, name), names, (*key, name)) for name in fields})


def _value(value: object, names: Mapping[str, str], key: tuple[str | int, ...]) -> object:
    if isinstance(value, Section):
        return _section(value, names, key)
    if isinstance(value, dict):
        return {name: _value(item, names, (*key, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_value(item, names, (*key, index)) for index, item in enumerate(value)]
    if dotted(key) not in names:
        return value
    kind = NamedFloat if isinstance(value, float) else NamedInt
    return kind.of(value, names[dotted(key)])
