"""MLA attention of one sequence, backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case, normal
from dsc.compiler.bench.cases.mla_attention import inputs, told


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    heads, nope, rope, v = sizes
    q, kv, k_rope, angles = inputs(sizes, tokens, device)
    dout, out = (normal(1, tokens, heads, v, device=device) for _ in range(2))
    lse = torch.full((1, heads, tokens), 12.0, device=device)
    pairs, starts = told(kernel, tokens, device)
    arguments = (dout, q, kv, k_rope, angles, *starts, out, lse)
    yield Case(
        f"mla_attention_backward {tokens} x {heads} x {nope}+{rope}/{v}",
        partial(kernel.backward, *arguments),
        partial(kernel.reference_backward, *arguments),
        bytes=4 * (q.numel() + kv.numel() + k_rope.numel() + out.numel()) + 4 * lse.numel(),
        flops=2 * pairs * heads * (3 * (nope + rope) + 2 * v),
    )
