"""MLA attention of one sequence, forward; of several documents in a row where the kernel keeps them apart."""

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
    heads, nope, rope, v = sizes
    q, kv, k_rope, angles = inputs(sizes, tokens, device)
    wide = q.transpose(1, 2)
    pairs, starts = told(kernel, tokens, device)
    yield Case(
        f"mla_attention {tokens} x {heads} x {nope}+{rope}/{v}",
        partial(kernel._forward, q, kv, k_rope, angles, *starts),
        partial(kernel.reference, q, kv, k_rope, angles, *starts),
        bytes=2 * (q.numel() + kv.numel() + k_rope.numel() + tokens * heads * v),
        flops=2 * pairs * heads * (nope + rope + v),
        library=partial(_sdpa, wide, wide, kv[..., nope:].transpose(1, 2)),
    )


def inputs(sizes: tuple[Any, ...], tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, kv, k_rope and rope of one sequence, every angle zero."""
    heads, nope, rope, v = sizes
    shapes = ((heads, nope + rope), (heads, nope + v), (rope,))
    q, kv, k_rope = (normal(1, tokens, *shape, device=device) for shape in shapes)
    return q, kv, k_rope, torch.stack((torch.ones(tokens, rope), torch.zeros(tokens, rope))).to(device)


def told(kernel: ModuleType, tokens: int, device: str) -> tuple[int, tuple[Tensor, ...]]:
    """Pairs of a query and a key, and where the document of each token begins, if the kernel is told."""
    if not hasattr(kernel, "hides"):
        return tokens**2 // 2, ()
    starts, pairs = documents(tokens, device)
    return pairs, (starts,)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention with keys of full width, of one document: what remains to be done once they are built."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
