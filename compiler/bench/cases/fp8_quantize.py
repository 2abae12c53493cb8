"""Quantization at the widths of the model: activations, and weights between the hidden state and a feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from dsc.compiler.bench.case import Case, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    hidden, widths = sizes
    for width in sorted({hidden, *widths}):
        x = normal(tokens, width, device=device)
        yield _case(kernel, "rows", x, written=1)
        yield _case(kernel, "rows_and_columns", x, written=2)
    for width in widths:
        w = normal(width, hidden, device=device)
        yield _case(kernel, "blocks", w, written=1)
        yield _case(kernel, "blocks_and_transpose", w, written=2)


def _case(kernel: ModuleType, launch: str, x: Tensor, written: int) -> Case:
    """`written` copies of the codes are stored. Codes are compared as numbers and have to be bit-equal."""
    return Case(
        f"quantize_{launch} {' x '.join(map(str, x.shape))}",
        partial(getattr(kernel, f"quantize_{launch}"), x),
        partial(getattr(kernel, f"reference_{launch}"), x),
        bytes=x.numel() * (x.itemsize + written),
        bound=0.0,
    )
