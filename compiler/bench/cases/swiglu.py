"""SwiGLU at the widths of the model's dense feed-forwards, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

from dsc.compiler.bench.case import Case, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for width in sizes:
        label = f"{tokens} x {width}"
        gate, up, dy = (normal(tokens, width, device=device) for _ in range(3))
        row = 2 * width * tokens
        yield Case(
            f"swiglu {label}", partial(kernel.swiglu, gate, up), partial(kernel.reference, gate, up), bytes=3 * row
        )
        yield Case(
            f"swiglu_backward {label}",
            partial(kernel.swiglu_backward, dy, gate, up),
            partial(kernel.reference_backward, dy, gate, up),
            bytes=5 * row,
        )
