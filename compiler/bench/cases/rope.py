"""Rotation of the model's queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for heads, width in kernel.SIZES:
        # Heads three times as wide, of which the tail is rotated: the queries of multi-head latent attention.
        x = torch.randn(1, tokens, heads, 3 * width, device=device, dtype=torch.bfloat16)[..., 2 * width :]
        rope = torch.randn(2, tokens, width, device=device)
        for name, inverse in (("rotate", False), ("rotate_backward", True)):
            yield Case(
                f"{name} {tokens} x {heads} x {width}",
                partial(kernel._rotate, x, rope, inverse),
                partial(kernel.reference, x, rope, inverse),
                bytes=4 * tokens * heads * width + 8 * tokens * width,
            )
