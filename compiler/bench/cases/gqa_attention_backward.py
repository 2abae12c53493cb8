"""Attention of grouped queries of one row, backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.cases.gqa_attention import inputs, label, seen


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for heads, kv_heads, width, window in sizes:
        q, k, v = inputs(heads, kv_heads, width, tokens, device)
        dout, out, _ = inputs(heads, heads, width, tokens, device)
        lse = torch.full((1, heads, tokens), 12.0, device=device)
        starts, pairs = seen(window, tokens, device)
        arguments = (dout, q, k, v, starts, out, lse, width**-0.5)
        yield Case(
            f"gqa_attention_backward {label(tokens, heads, kv_heads, width, window)}",
            partial(kernel.backward, *arguments),
            partial(kernel.reference_backward, *arguments),
            bytes=4 * q.nbytes + 2 * (k.nbytes + v.nbytes) + lse.nbytes,
            flops=10 * pairs * heads * width,
        )
