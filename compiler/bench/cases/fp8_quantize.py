"""Quantisation at the widths of the model: activations, and weights between the hidden state and a feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case, filled


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for width in sorted(set(kernel.WIDTHS)):
        x = _matrix((tokens, width), device)
        yield _case(kernel, "rows", x, written=1)
        yield _case(kernel, "rows_and_columns", x, written=2)
    hidden, *others = kernel.WIDTHS
    for width in sorted(set(others)):
        w = _matrix((width, hidden), device)
        yield _case(kernel, "blocks", w, written=1)
        yield _case(kernel, "blocks_and_transpose", w, written=2)


def _matrix(shape: tuple[int, ...], device: str) -> Tensor:
    x = torch.empty(shape, device=device, dtype=torch.bfloat16)
    return x if not filled() else x.normal_()


def _case(kernel: ModuleType, launch: str, x: Tensor, written: int) -> Case:
    """`written` copies of the codes leave the kernel. Codes are compared as they decode: bit-equal ones differ by 0."""
    return Case(
        f"quantize_{launch} {' x '.join(map(str, x.shape))}",
        partial(getattr(kernel, f"quantize_{launch}"), x),
        partial(getattr(kernel, f"reference_{launch}"), x),
        bytes=x.numel() * (x.itemsize + written),
        bound=0.0,
    )
