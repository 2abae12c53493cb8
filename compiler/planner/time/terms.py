"""Amounts of a part as polynomials in the batch and the length, so that what a layout makes of them is arithmetic."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from dsc.compiler.graph.dim import Atom, B, Dim, S


class Terms(NamedTuple):
    """A polynomial: the sum of coefficient * B^b * S^s, times the formulas that some terms have beside them."""

    terms: tuple[tuple[float, int, int, tuple[Dim, ...]], ...] = ()

    def at(self, batch: int, length: int) -> float:
        found = 0.0
        for coefficient, b, s, formulas in self.terms:
            amount = batch**b * length**s
            if formulas:
                amount *= prod(formula.value({B.name: batch, S.name: length}) for formula in formulas)
            found += coefficient * float(amount)
        return found

    def times(self, factor: float) -> Terms:
        return Terms(tuple((factor * coefficient, b, s, formulas) for coefficient, b, s, formulas in self.terms))


def terms_of(dim: Dim) -> Terms:
    return Terms(tuple(_term(float(c), names) for names, c in dim.polynomial().items()))


def _term(coefficient: float, names: tuple[str, ...]) -> tuple[float, int, int, tuple[Dim, ...]]:
    formulas = tuple(name.dim for name in names if isinstance(name, Atom))
    return coefficient, names.count(B.name), names.count(S.name), formulas
