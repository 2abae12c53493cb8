"""SwiGLU fused with quantization, at the widths of the model's feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

from dsc.compiler.bench.case import Case, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for width in sizes:
        gate, up = normal(tokens, 2 * width, device=device).chunk(2, -1)
        for along in ("rows", "columns"):
            # sigmoid differs from PyTorch's in the last bit, which now and then changes a code by one step.
            yield Case(
                f"swiglu_quantize_{along} {tokens} x {width}",
                partial(getattr(kernel, f"swiglu_quantize_{along}"), gate, up),
                partial(getattr(kernel, f"reference_along_{along}"), gate, up),
                bytes=tokens * width * 5,
            )
