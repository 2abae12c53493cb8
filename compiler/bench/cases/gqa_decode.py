"""Decoding of grouped queries over sequences of `tokens` cached tokens, and a part of a prompt behind them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, normal

PAGE_SIZE = 64
STEPS = ((1, 1), (16, 1), (128, 1), (128, 2), (7, 3), (1, 512))
"""Sequences, and new tokens of each."""


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    heads, kv_heads, width = sizes
    pages = -(-tokens // PAGE_SIZE)
    for batch, queries in STEPS:
        q = normal(batch, queries, heads, width, device=device)
        cache = normal(batch * pages, PAGE_SIZE, 2 * kv_heads * width, device=device)
        block_table = torch.randperm(batch * pages, device=device, dtype=torch.int32).view(batch, pages)
        lengths = torch.full((batch,), tokens, device=device, dtype=torch.int32)
        arguments = (q, cache, block_table, lengths, 0)
        yield Case(
            f"gqa_decode {batch} x {queries} over {tokens}",
            partial(kernel._decode, *arguments),
            partial(kernel.reference, *arguments),
            bytes=batch * tokens * 2 * kv_heads * width * cache.itemsize + 2 * q.nbytes,
            flops=4 * batch * queries * heads * tokens * width,
            library=partial(_attention, q, *cache.view(batch, -1, 2, kv_heads, width).unbind(2)),
        )


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention of grouped heads, unmasked and without pages: to compare speeds, not results."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
