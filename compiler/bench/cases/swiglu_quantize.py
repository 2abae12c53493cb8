"""SwiGLU quantised as it is computed, at the widths of the model's feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, tokens: int, device: str) -> Iterator[Case]:
    for width in sorted(set(kernel.WIDTHS)):
        gate, up = torch.randn(tokens, 2 * width, device=device, dtype=torch.bfloat16).chunk(2, -1)
        for launch, written in (("rows", 1), ("rows_and_columns", 2)):
            # sigmoid differs in its last bit from PyTorch's: where that crosses a rounding, a code moves one step.
            yield Case(
                f"swiglu_quantize_{launch} {tokens} x {width}",
                partial(getattr(kernel, f"swiglu_quantize_{launch}"), gate, up),
                partial(_reference, kernel, launch, gate, up),
                bytes=tokens * width * (4 + written),
            )


def _reference(kernel: ModuleType, launch: str, gate: Tensor, up: Tensor) -> object:
    return getattr(kernel, f"reference_{launch}")(kernel.reference_swiglu(gate, up))
