"""The output head with its loss, forward and backward, at the model's width and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from dsc.compiler.bench.case import Case, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    vocab, width = sizes
    hidden = normal(tokens, width, device=device)
    weight = normal(vocab, width, device=device, std=width**-0.5)
    labels = torch.randint(vocab, (tokens,), device=device)
    dloss, lse = torch.ones((), device=device), torch.full((tokens,), 0.5 + vocab, device=device).log()
    label, operations = f"{tokens} x {width} x {vocab}", 2 * tokens * width * vocab
    operands = 2 * (tokens + vocab) * width
    library = getattr(F, "linear_cross_entropy", None)  # torch 2.11 has none
    yield Case(
        f"linear_cross_entropy {label}",
        partial(kernel._forward, hidden, weight, labels),
        partial(kernel.reference, hidden, weight, labels),
        bytes=operands,
        flops=operations,
        library=partial(library, hidden, weight, labels) if library else None,
    )
    yield Case(
        f"linear_cross_entropy_backward {label}",
        partial(kernel._backward, dloss, hidden, weight, labels, lse),
        partial(kernel.reference_backward, dloss, hidden, weight, labels, lse),
        bytes=2 * operands,
        flops=3 * operations,
    )
