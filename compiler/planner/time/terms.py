"""Amounts of a part as polynomials in the batch and the length, so that what a layout makes of them is arithmetic."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from dsc.compiler.graph.dim import Atom, B, Dim, S


class Terms(NamedTuple):
    """A polynomial: the sum of coefficient * B^b * S^s, times the formulas that some terms have beside them."""

    terms: tuple[tuple[float, int, int, tuple[Dim, ...]], ...] = ()

    def at(self, batch: int, length: int) -> float:
        sizes = {B.name: batch, S.name: length}
        return sum(
            coefficient * float(batch**b * length**s * prod(formula.value(sizes) for formula in formulas))
            for coefficient, b, s, formulas in self.terms
        )

    def times(self, factor: float) -> Terms:
        return Terms(tuple((factor * coefficient, b, s, formulas) for coefficient, b, s, formulas in self.terms))


def terms_of(dim: Dim) -> Terms:
    return Terms(tuple(_term(float(c), names) for names, c in dim.polynomial().items()))


def _term(coefficient: float, names: tuple[str, ...]) -> tuple[float, int, int, tuple[Dim, ...]]:
    formulas = tuple(name.dim for name in names if isinstance(name, Atom))
    return coefficient, names.count(B.name), names.count(S.name), formulas
