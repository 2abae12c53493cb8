"""Attention of grouped queries of one row, forward: to the keys of its documents, or of a window."""

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
    heads, kv_heads, width = sizes
    q, k, v = inputs(sizes, tokens, device)
    starts, pairs = seen(kernel, tokens, device)
    yield Case(
        f"gqa_attention {tokens} x {heads} on {kv_heads} x {width}",
        partial(kernel._forward, q, k, v, starts),
        partial(kernel.reference, q, k, v, starts),
        bytes=2 * q.nbytes + k.nbytes + v.nbytes,
        flops=4 * pairs * heads * width,
        library=partial(_sdpa, q, k, v, visible(starts)),
    )


def inputs(sizes: tuple[Any, ...], tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one row."""
    heads, kv_heads, width = sizes
    shapes = ((heads, width), (kv_heads, width), (kv_heads, width))
    q, k, v = (normal(1, tokens, *shape, device=device) for shape in shapes)
    return q, k, v


def seen(kernel: ModuleType, tokens: int, device: str) -> tuple[Tensor, int]:
    """The first position that each token sees [1, S], and how many pairs of a query and a key there are, of half a
    square as half: of a window where the kernel has one, otherwise of documents."""
    if not (window := getattr(kernel, "WINDOW", 0)):
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
