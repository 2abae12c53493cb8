"""Rotation of the model's queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

from dsc.compiler.bench.case import Case, normal, turns


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for heads, width in sizes:
        # The last third of wider heads, as in the queries of multi-head latent attention.
        x = normal(1, tokens, heads, 3 * width, device=device)[..., 2 * width :]
        rope = turns(tokens, width, device)
        for name, inverse in (("rotate", False), ("rotate_backward", True)):
            yield Case(
                f"{name} {tokens} x {heads} x {width}",
                partial(kernel._rotate, x, rope, inverse),
                partial(kernel.reference, x, rope, inverse),
                bytes=4 * tokens * heads * width + 8 * tokens * width,
            )
