"""SwiGLU of the routed experts at the model's width, forward and backward, for `tokens` rows of any experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for width in kernel.WIDTHS:
        sizes = f"{tokens} x {width}"
        gate_up = torch.randn(tokens, 2 * width, device=device, dtype=torch.bfloat16)
        dy = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
        weight = torch.rand(tokens, device=device)
        row = 2 * width * tokens
        yield Case(
            f"weighted_swiglu {sizes}",
            partial(kernel.weighted_swiglu, gate_up, weight),
            partial(kernel.reference, gate_up, weight),
            bytes=3 * row + 4 * tokens,
        )
        yield Case(
            f"weighted_swiglu_backward {sizes}",
            partial(kernel._backward, dy, gate_up, weight),
            partial(kernel.reference_backward, dy, gate_up, weight),
            bytes=5 * row + 8 * tokens,
        )
