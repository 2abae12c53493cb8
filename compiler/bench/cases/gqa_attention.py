"""Attention of grouped queries of one row, forward, for each attention of the model: to the keys of documents, or of a
window."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, documents, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for heads, kv_heads, width, window in sizes:
        q, k, v = inputs(heads, kv_heads, width, tokens, device)
        starts, pairs = seen(window, tokens, device)
        yield Case(
            f"gqa_attention {label(tokens, heads, kv_heads, width, window)}",
            partial(kernel._forward, q, k, v, starts, width**-0.5),
            partial(kernel.reference, q, k, v, starts, width**-0.5),
            bytes=2 * q.nbytes + k.nbytes + v.nbytes,
            flops=4 * pairs * heads * width,
            library=partial(_sdpa, q, k, v, visible(starts)),
        )


def label(tokens: int, heads: int, kv_heads: int, width: int, window: int | None) -> str:
    return f"{tokens} x {heads} on {kv_heads} x {width}" + (f" in {window}" if window else "")


def inputs(heads: int, kv_heads: int, width: int, tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one row."""
    shapes = ((heads, width), (kv_heads, width), (kv_heads, width))
    q, k, v = (normal(1, tokens, *shape, device=device) for shape in shapes)
    return q, k, v


def seen(window: int | None, tokens: int, device: str) -> tuple[Tensor, int]:
    """The first position that each token sees [1, S], and how many pairs of a query and a key there are, of half a
    square as half: of a window, otherwise of documents."""
    if window is None:
        return documents(tokens, device)
    before = max(tokens - window, 0)
    first = torch.arange(1 - window, tokens + 1 - window, dtype=torch.int32, device=device).clamp(min=0)
    return first.unsqueeze(0), (tokens**2 - before**2) // 2


def visible(starts: Tensor) -> Tensor:
    """[1, 1, S, S]: what PyTorch's operator is told of the same."""
    places = torch.arange(starts.shape[1], device=starts.device)
    return (places >= starts.unsqueeze(-1)).tril().unsqueeze(1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
