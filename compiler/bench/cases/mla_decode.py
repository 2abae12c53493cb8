"""MLA decode over sequences of `tokens` cached tokens: few and many sequences, one and two new tokens of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, filled, normal

PAGE_SIZE = 64
STEPS = ((1, 1), (16, 1), (128, 1), (128, 2), (7, 3))
"""Sequences, and new tokens of each; the last are no powers of two, which takes other addresses and more registers."""


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    heads, latent, rotary = sizes
    pages = -(-tokens // PAGE_SIZE)
    for batch, queries in STEPS:
        q_latent, q_rope = (normal(batch, queries, heads, width, device=device) for width in (latent, rotary))
        cache = _cache(kernel, batch * pages, latent, rotary, device)
        block_table = torch.randperm(batch * pages, device=device, dtype=torch.int32).view(batch, pages)
        lengths = torch.full((batch,), tokens, device=device, dtype=torch.int32)
        arguments = (q_latent, q_rope, cache, block_table, lengths, 0)
        yield Case(
            f"mla_decode {batch} x {queries} over {tokens}",
            partial(kernel._decode, *arguments),
            partial(kernel.reference, *arguments),
            bytes=batch * tokens * cache.shape[-1] * cache.itemsize + 2 * q_latent.nbytes + q_rope.nbytes,
            flops=2 * batch * queries * heads * tokens * (2 * latent + rotary),
            library=None
            if hasattr(kernel, "GROUP")
            else partial(_attention, q_latent, q_rope, cache.view(batch, 1, -1, cache.shape[-1])),
        )


def _attention(q_latent: Tensor, q_rope: Tensor, rows: Tensor) -> Tensor:
    """PyTorch's attention of every head to one of keys and values, unmasked and without pages: to compare speeds."""
    q = torch.cat((q_latent, q_rope), -1).flatten(1, 2).unsqueeze(1)
    return F.scaled_dot_product_attention(q, rows, rows[..., : q_latent.shape[-1]])


def _cache(kernel: ModuleType, num_pages: int, latent: int, rotary: int, device: str) -> Tensor:
    """Pages of random rows."""
    fp8 = hasattr(kernel, "GROUP")
    scales = latent // kernel.GROUP if fp8 else 0
    if not filled():
        width, dtype = (latent + 4 * scales + 2 * rotary, torch.uint8) if fp8 else (latent + rotary, torch.bfloat16)
        return torch.empty(num_pages, PAGE_SIZE, width, dtype=dtype, device=device)
    rows = normal(num_pages, PAGE_SIZE, latent + rotary, device=device)
    if not fp8:
        return rows
    codes, k_rope = rows[..., :latent].to(torch.float8_e4m3fn), rows[..., latent:].contiguous()
    ones = torch.ones(num_pages, PAGE_SIZE, scales, device=device)
    return torch.cat([part.view(torch.uint8) for part in (codes, ones, k_rope)], -1)
