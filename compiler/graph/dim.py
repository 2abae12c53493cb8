"""Symbolic sizes: named constants of the model, run-time symbols such as B and S, and arithmetic on them.

A `Dim` keeps the form it was written in, because that form is printed into the emitted code; two dims are the
same size when their expanded polynomials are equal, however they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

# A sum of products: {("B", "S"): 2} is 2 B S. A factor that is no symbol is an Atom.
Polynomial = Mapping[tuple[str, ...], int | Fraction]


class Axis(Enum):
    """What a size counts, where it may be divided over GPUs."""

    BATCH = "sequences"
    SEQUENCE = "tokens of a sequence"
    HEADS = "attention heads, of queries or of keys and values"
    FEED_FORWARD = "width of a dense feed-forward"
    SHARED_EXPERTS = "width of the shared experts"
    EXPERTS = "routed experts"
    CHOSEN_EXPERTS = "routed experts of one token"
    EXPERT_WIDTH = "width of a routed expert"
    VOCABULARY = "tokens of the vocabulary"


class Dim:
    """A size, or a cost made of sizes."""

    def __add__(self, other: Dim | int) -> Dim:
        return simplify_sum(self, as_dim(other))

    def __radd__(self, other: int) -> Dim:
        return simplify_sum(as_dim(other), self)

    def __mul__(self, other: Dim | int) -> Dim:
        return simplify_product(self, as_dim(other))

    def __rmul__(self, other: int) -> Dim:
        return simplify_product(as_dim(other), self)

    def __sub__(self, other: Dim | int) -> Dim:
        return self + as_dim(other) * -1

    def __floordiv__(self, divisor: Dim | int) -> Dim:
        return Quotient(self, as_dim(divisor))

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        """The number, with run-time symbols bound by name; a missing one or an inexact division is a bug of ours."""
        raise TypeError(type(self))

    def polynomial(self) -> Polynomial:
        """Expanded over run-time symbols, constants replaced by their numbers; zero terms left out."""
        raise TypeError(type(self))

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        """The same size with some symbols replaced."""
        raise TypeError(type(self))

    def same(self, other: Dim | int) -> bool:
        return self == other or self.polynomial() == as_dim(other).polynomial()

    def symbols(self) -> Iterator[Symbol]:
        """The symbols that the size is written with, in reading order."""
        raise TypeError(type(self))

    def axes(self) -> frozenset[Axis]:
        """The axes of all symbols in it, and of those in their definitions."""
        return frozenset()

    def shape_text(self) -> str:
        """As written in a shape comment: one-letter names where the symbol has one."""
        raise TypeError(type(self))


@dataclass(frozen=True)
class Int(Dim):
    number: int

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        return self.number

    def polynomial(self) -> Polynomial:
        return {(): self.number} if self.number else {}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        return self

    def symbols(self) -> Iterator[Symbol]:
        return iter(())

    def __str__(self) -> str:
        return str(self.number)

    def shape_text(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class Symbol(Dim):
    """A named size: known now (`size`), made of others (`definition`), or known at run time (neither)."""

    name: str
    size: int | None = None
    definition: Dim | None = None
    letter: str | None = None
    axis: Axis | None = None

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        if self.definition is not None:
            return self.definition.value(bindings)
        if self.size is not None:
            return self.size
        assert bindings and self.name in bindings, f"{self.name} is not bound"
        return bindings[self.name]

    def polynomial(self) -> Polynomial:
        if self.definition is not None:
            return self.definition.polynomial()
        return Int(self.size).polynomial() if self.size is not None else {(self.name,): 1}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        if self.name in bindings or self.definition is None:
            return bindings.get(self.name, self)
        inner = self.definition.substitute(bindings)
        return self if inner.same(self.definition) else inner

    def symbols(self) -> Iterator[Symbol]:
        yield self

    def axes(self) -> frozenset[Axis]:
        own = frozenset[Axis]() if self.axis is None else frozenset((self.axis,))
        return own if self.definition is None else own | self.definition.axes()

    def __str__(self) -> str:
        return self.name

    def shape_text(self) -> str:
        if self.letter is None and self.definition is not None:
            return self.definition.shape_text()
        return self.letter or self.name


@dataclass(frozen=True)
class Sum(Dim):
    left: Dim
    right: Dim

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        return self.left.value(bindings) + self.right.value(bindings)

    def polynomial(self) -> Polynomial:
        terms = dict(self.left.polynomial())
        for names, coefficient in self.right.polynomial().items():
            terms[names] = terms.get(names, 0) + coefficient
        return {names: coefficient for names, coefficient in terms.items() if coefficient}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        return self.left.substitute(bindings) + self.right.substitute(bindings)

    def symbols(self) -> Iterator[Symbol]:
        yield from self.left.symbols()
        yield from self.right.symbols()

    def axes(self) -> frozenset[Axis]:
        return self.left.axes() | self.right.axes()

    def _text(self, left: str, right: Dim, right_text: str) -> str:
        if isinstance(right, Int) and right.number < 0:
            return f"{left} - {-right.number}"
        return f"{left} + {right_text}"

    def __str__(self) -> str:
        return self._text(str(self.left), self.right, str(self.right))

    def shape_text(self) -> str:
        return self._text(self.left.shape_text(), self.right, self.right.shape_text())


@dataclass(frozen=True)
class Product(Dim):
    left: Dim
    right: Dim

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        return self.left.value(bindings) * self.right.value(bindings)

    def polynomial(self) -> Polynomial:
        terms: dict[tuple[str, ...], int | Fraction] = {}
        for left, a in self.left.polynomial().items():
            for right, b in self.right.polynomial().items():
                names = tuple(sorted(left + right))
                terms[names] = terms.get(names, 0) + a * b
        return {names: coefficient for names, coefficient in terms.items() if coefficient}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        return self.left.substitute(bindings) * self.right.substitute(bindings)

    def symbols(self) -> Iterator[Symbol]:
        yield from self.left.symbols()
        yield from self.right.symbols()

    def axes(self) -> frozenset[Axis]:
        return self.left.axes() | self.right.axes()

    def __str__(self) -> str:
        return " * ".join(f"({d})" if isinstance(d, Sum) else str(d) for d in (self.left, self.right))

    def shape_text(self) -> str:
        texts = [dim.shape_text() for dim in (self.left, self.right)]
        return " * ".join(f"({text})" if " + " in text or " - " in text else text for text in texts)


@dataclass(frozen=True)
class Quotient(Dim):
    """An exact division by a known number."""

    numerator: Dim
    divisor: Dim

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        whole, rest = divmod(self.numerator.value(bindings), self.divisor.value(bindings))
        assert rest == 0, f"{self} is not whole"
        return whole

    def polynomial(self) -> Polynomial:
        divisor = self.divisor.value()
        return {names: Fraction(coefficient, divisor) for names, coefficient in self.numerator.polynomial().items()}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        return replace(self, numerator=self.numerator.substitute(bindings))

    def symbols(self) -> Iterator[Symbol]:
        yield from self.numerator.symbols()
        yield from self.divisor.symbols()

    def axes(self) -> frozenset[Axis]:
        return self.numerator.axes()

    def __str__(self) -> str:
        text = f"({self.numerator})" if isinstance(self.numerator, Sum | Product) else str(self.numerator)
        return f"{text} // {self.divisor}"

    def shape_text(self) -> str:
        text = self.numerator.shape_text()
        text = f"({text})" if isinstance(self.numerator, Sum | Product) else text
        return f"{text} / {self.divisor.shape_text()}"


@dataclass(frozen=True)
class Blocks(Quotient):
    """The number of blocks that hold the elements, rounded up; its polynomial is that of the exact division."""

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        return -(-self.numerator.value(bindings) // self.divisor.value(bindings))


class Atom(str):
    """A factor of a polynomial that is a formula itself."""

    dim: Dim

    @classmethod
    def of(cls, dim: Dim) -> Atom:
        atom = cls(dim)
        atom.dim = dim
        return atom


@dataclass(frozen=True)
class Beyond(Dim):
    """max(size - limit, 0): by how much a size exceeds another."""

    size: Dim
    limit: Dim

    def value(self, bindings: Mapping[str, int] | None = None) -> int:
        return max(self.size.value(bindings) - self.limit.value(bindings), 0)

    def polynomial(self) -> Polynomial:
        return {(Atom.of(self),): 1}

    def substitute(self, bindings: Mapping[str, Dim]) -> Dim:
        return Beyond(self.size.substitute(bindings), self.limit.substitute(bindings))

    def axes(self) -> frozenset[Axis]:
        return self.size.axes()

    def __str__(self) -> str:
        return f"max({self.size - self.limit}, 0)"

    def shape_text(self) -> str:
        return f"max({(self.size - self.limit).shape_text()}, 0)"


def as_dim(value: Dim | int) -> Dim:
    return Int(value) if isinstance(value, int) else value


def simplify_sum(left: Dim, right: Dim) -> Dim:
    if isinstance(left, Int) and isinstance(right, Int):
        return Int(left.number + right.number)
    if isinstance(right, Int) and right.number == 0:
        return left
    if isinstance(left, Int) and left.number == 0:
        return right
    if left == right:
        return Product(Int(2), left)
    if isinstance(left, Sum) and isinstance(left.right, Int) and isinstance(right, Int):
        return simplify_sum(left.left, Int(left.right.number + right.number))
    return Sum(left, right)


def simplify_product(left: Dim, right: Dim) -> Dim:
    if isinstance(left, Int) and isinstance(right, Int):
        return Int(left.number * right.number)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Int) and one.number in (0, 1):
            return other if one.number else one
    return Product(left, right)


def total(dims: list[Dim]) -> Dim:
    """The sum; zero for none."""
    result: Dim = Int(0)
    for dim in dims:
        result = result + dim
    return result


def product(dims: tuple[Dim, ...]) -> Dim:
    """The product; one for none."""
    result: Dim = Int(1)
    for dim in dims:
        result = result * dim
    return result


# Run-time sizes. T is what a mixture of experts sees when batch and sequence are flattened.
B = Symbol("B", letter="B", axis=Axis.BATCH)
S = Symbol("S", letter="S", axis=Axis.SEQUENCE)
C = Symbol("C", letter="C")
T = Symbol("T", definition=B * S, letter="T")
M = Symbol("M", letter="M")  # rows that a step sends to the nodes of its experts
