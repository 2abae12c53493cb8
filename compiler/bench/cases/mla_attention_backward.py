"""MLA attention, backward: one sequence, and the same tokens as eight packed ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.cases.mla_attention import problems, random


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    heads, nope, rope, v = kernel.NUM_HEADS, kernel.QK_NOPE_HEAD_DIM, kernel.QK_ROPE_HEAD_DIM, kernel.V_HEAD_DIM
    dout, out = (random(1, tokens, heads, v, device=device) for _ in range(2))
    lse = torch.full((1, heads, tokens), 12.0, device=device)
    for name, given, square in problems(kernel, tokens, device):
        q, kv, k_rope = given[:3]
        yield Case(
            f"mla_attention_backward {name}",
            partial(kernel.backward, dout, *given, out, lse),
            partial(kernel.reference_backward, dout, *given, out, lse),
            bytes=4 * (q.numel() + kv.numel() + k_rope.numel() + out.numel()) + 4 * lse.numel(),
            flops=square * heads * (3 * (nope + rope) + 2 * v),
        )
