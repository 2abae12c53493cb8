"""SwiGLU at the widths of the model's dense feed-forwards, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for width in sorted(set(kernel.WIDTHS)):
        sizes = f"{tokens} x {width}"
        gate, up, dy = (torch.randn(tokens, width, device=device, dtype=torch.bfloat16) for _ in range(3))
        row = 2 * width * tokens
        yield Case(
            f"swiglu {sizes}", partial(kernel.swiglu, gate, up), partial(kernel.reference, gate, up), bytes=3 * row
        )
        yield Case(
            f"swiglu_backward {sizes}",
            partial(kernel.swiglu_backward, dy, gate, up),
            partial(kernel.reference_backward, dy, gate, up),
            bytes=5 * row,
        )
