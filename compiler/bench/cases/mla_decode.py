"""MLA decode over sequences of `tokens` cached tokens: few and many sequences, one and two new tokens of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case, filled

PAGE_SIZE = 64
SIZES = ((1, 1), (16, 1), (128, 1), (128, 2))
"""Sequences, and new tokens of each."""


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    heads, latent, rotary = kernel.NUM_HEADS, kernel.KV_LORA_RANK, kernel.QK_ROPE_HEAD_DIM
    pages = -(-tokens // PAGE_SIZE)
    for batch, queries in SIZES:
        q_latent, q_rope = (
            torch.randn(batch, queries, heads, width, device=device, dtype=torch.bfloat16) for width in (latent, rotary)
        )
        cache = _cache(kernel, batch * pages, device)
        block_table = torch.randperm(batch * pages, device=device, dtype=torch.int32).view(batch, pages)
        lengths = torch.full((batch,), tokens, device=device, dtype=torch.int32)
        arguments = (q_latent, q_rope, cache, block_table, lengths)
        yield Case(
            f"mla_decode {batch} x {queries} over {tokens}",
            partial(kernel._decode, *arguments),
            partial(kernel.reference, *arguments),
            bytes=batch * tokens * cache.shape[-1] * cache.itemsize + 2 * q_latent.nbytes + q_rope.nbytes,
            flops=2 * batch * queries * heads * tokens * (2 * latent + rotary),
        )


def _cache(kernel: ModuleType, num_pages: int, device: str) -> Tensor:
    """Pages of random rows."""
    latent, rotary, fp8 = kernel.KV_LORA_RANK, kernel.QK_ROPE_HEAD_DIM, hasattr(kernel, "GROUP")
    scales = latent // kernel.GROUP if fp8 else 0
    if not filled():
        width, dtype = (latent + 4 * scales + 2 * rotary, torch.uint8) if fp8 else (latent + rotary, torch.bfloat16)
        return torch.empty(num_pages, PAGE_SIZE, width, dtype=dtype)
    rows = torch.randn(num_pages, PAGE_SIZE, latent + rotary, device=device, dtype=torch.bfloat16)
    if not fp8:
        return rows
    codes, k_rope = rows[..., :latent].to(torch.float8_e4m3fn), rows[..., latent:].contiguous()
    ones = torch.ones(num_pages, PAGE_SIZE, scales, device=device)
    return torch.cat([part.view(torch.uint8) for part in (codes, ones, k_rope)], -1)
