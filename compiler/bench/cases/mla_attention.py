"""MLA attention, forward: one sequence, and the same tokens as eight packed ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, filled


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    nope, rope, v = kernel.QK_NOPE_HEAD_DIM, kernel.QK_ROPE_HEAD_DIM, kernel.V_HEAD_DIM
    for name, (q, kv, k_rope, table, starts), square in problems(kernel, tokens, device):
        wide = q.transpose(1, 2)
        yield Case(
            f"mla_attention {name}",
            partial(kernel._forward, q, kv, k_rope, table, starts),
            partial(kernel.reference, q, kv, k_rope, table, starts),
            bytes=2 * (q.numel() + kv.numel() + k_rope.numel() + tokens * kernel.NUM_HEADS * v),
            flops=square * kernel.NUM_HEADS * (nope + rope + v),
            library=partial(_sdpa, wide, wide, kv[..., nope:].transpose(1, 2)) if starts is None else None,
        )


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def problems(kernel: ModuleType, tokens: int, device: str) -> Iterator[tuple[str, Inputs, int]]:
    """A name, the five inputs of mla_attention, and the sum of the squares of the sequences' lengths."""
    heads, nope, rope, v = kernel.NUM_HEADS, kernel.QK_NOPE_HEAD_DIM, kernel.QK_ROPE_HEAD_DIM, kernel.V_HEAD_DIM
    shapes = ((heads, nope + rope), (heads, nope + v), (rope,))
    q, kv, k_rope = (random(1, tokens, *shape, device=device) for shape in shapes)
    unturned = torch.stack((torch.ones(tokens, rope), torch.zeros(tokens, rope))).to(device)
    packed = torch.arange(0, tokens + 1, tokens // 8, device=device, dtype=torch.int32)
    sizes = f"{tokens} x {heads} x {nope}+{rope}/{v}"
    yield sizes, (q, kv, k_rope, unturned, None), tokens**2
    yield f"{sizes}, 8 packed", (q, kv, k_rope, unturned, packed), tokens**2 // 8


def random(*shape: int, device: str) -> Tensor:
    """bfloat16; on a CPU, where kernels are compiled only, memory that nobody touches."""
    make = torch.empty if not filled() else torch.randn
    return make(*shape, device=device, dtype=torch.bfloat16)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention to keys that are wide already: what is left of the work once they have been built."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
