"""The choice of experts, forward and backward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    experts, top_k = sizes
    logits, g = (torch.randn(tokens, width, device=device) for width in (experts, top_k))
    biased = "bias" in inspect.signature(kernel.reference).parameters
    arguments = (logits, torch.zeros(experts, device=device)) if biased else (logits,)
    ids = logits.topk(top_k).indices
    yield Case(
        f"route {tokens} x {experts}",
        partial(kernel.route, *arguments),
        partial(kernel.reference, *arguments),
        bytes=tokens * (4 * experts + 12 * top_k),
    )
    yield Case(
        f"route_backward {tokens} x {experts}",
        partial(kernel._backward, g, logits, ids),
        partial(kernel.reference_backward, g, logits, ids),
        bytes=tokens * (8 * experts + 12 * top_k),
    )
