"""Attention of grouped queries of one row, backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.cases.gqa_attention import inputs, seen


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    heads, kv_heads, width = sizes
    q, k, v = inputs(sizes, tokens, device)
    dout, out, _ = inputs((heads, heads, width), tokens, device)
    lse = torch.full((1, heads, tokens), 12.0, device=device)
    starts, pairs = seen(kernel, tokens, device)
    arguments = (dout, q, k, v, starts, out, lse)
    yield Case(
        f"gqa_attention_backward {tokens} x {heads} on {kv_heads} x {width}",
        partial(kernel.backward, *arguments),
        partial(kernel.reference_backward, *arguments),
        bytes=4 * q.nbytes + 2 * (k.nbytes + v.nbytes) + lse.nbytes,
        flops=10 * pairs * heads * width,
    )
