"""Sort by expert, and the sum of the rows of each token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case, normal
from dsc.compiler.bench.cases.grouped_gemm import routing


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    num_experts, top_k, width = sizes
    experts = torch.rand(tokens, num_experts, device=device).topk(top_k).indices
    _, position, _ = routing(tokens, num_experts, top_k, device)
    rows, shared = (normal(n, width, device=device) for n in (tokens * top_k, tokens))
    label = f"{tokens} x {top_k} of {num_experts}"
    yield Case(
        f"sort_by_expert {label}",
        partial(kernel.sort_by_expert, experts, num_experts),
        partial(kernel.reference_sort, experts, num_experts),
        bytes=tokens * top_k * (8 + 4 + 4),
    )
    yield Case(
        f"combine {label}, {width}",
        partial(kernel.combine, rows, position, shared),
        partial(kernel.reference_combine, rows, position, shared),
        bytes=2 * width * tokens * (top_k + 2),
    )
    yield Case(
        f"combine_backward {label}, {width}",
        partial(kernel._spread, shared, position),
        partial(kernel.reference_spread, shared, position),
        bytes=2 * width * tokens * (top_k + 1),
    )
