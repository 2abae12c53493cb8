"""How far two results are apart, by pieces: copies in float64 of all of 7e9 numbers would not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 24  # numbers at a time


@dataclass(frozen=True)
class Comparison:
    difference: float
    """calc_diff: half the square of the relative error. Infinite where something is not finite."""
    worst: float = 0.0
    """The largest relative error of a row of the last dim; rows far below the mean count as if they were not."""
    row: int = -1
    """Which row that is."""


def compare(actual: object, expected: object) -> Comparison:
    """The worst of all tensors that come back."""
    pairs = zip(tensors(actual), tensors(expected), strict=True)
    return max((_compare(a, e) for a, e in pairs), key=lambda found: found.difference)


def equal(first: object, second: object) -> bool:
    """Whether all bits are, NaN among them."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(tensors(first), tensors(second), strict=True))


def tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple | list), type(result)
    return [tensor for tensor in result if isinstance(tensor, Tensor)]


def _compare(actual: Tensor, expected: Tensor) -> Comparison:
    if actual.shape != expected.shape:
        return Comparison(math.inf)
    floor = _mean_row(expected) / 100
    squares = product = 0.0
    worst, row = 0.0, -1
    for begin, x, y in _pieces(actual, expected):
        if not bool(x.isfinite().all()):
            return Comparison(math.inf, math.inf, begin + int((~x.isfinite()).any(1).nonzero()[0]))
        squares += float(x.square().sum() + y.square().sum())
        product += float((x * y).sum())
        errors = (x - y).norm(dim=1) / y.norm(dim=1).clamp(min=floor + 1e-30)
        if len(errors) and float(errors.max()) > worst:
            worst, row = float(errors.max()), begin + int(errors.argmax())
    return Comparison(0.0 if squares == 0 else max(0.0, 1 - 2 * product / squares), worst, row)


def _mean_row(x: Tensor) -> float:
    """Root of the mean square of the norms of rows."""
    total = sum(float(piece.square().sum()) for _, piece, _ in _pieces(x, x))
    return math.sqrt(total / max(1, len(_rows(x))))


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    a, b = _rows(a), _rows(b)
    step = max(1, PIECE // max(1, a.shape[1]))
    for begin in range(0, len(a), step):
        yield begin, a[begin : begin + step].double(), b[begin : begin + step].double()


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2) if x.dim() > 1 else x.reshape(1, -1)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)
