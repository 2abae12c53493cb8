"""SwiGLU quantised as it is computed, at the widths of the model's feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for width in sorted(set(kernel.WIDTHS)):
        gate, up = torch.randn(tokens, 2 * width, device=device, dtype=torch.bfloat16).chunk(2, -1)
        for along in ("rows", "columns"):
            # sigmoid differs in its last bit from PyTorch's: where that crosses a rounding, a code moves one step.
            yield Case(
                f"swiglu_quantize_{along} {tokens} x {width}",
                partial(getattr(kernel, f"swiglu_quantize_{along}"), gate, up),
                partial(getattr(kernel, f"reference_along_{along}"), gate, up),
                bytes=tokens * width * 5,
            )
