"""The gradients of h and SwiGLU of the experts, in FP8."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case, normal
from dsc.compiler.bench.cases.fp8_grouped_gemm import activation, weight
from dsc.compiler.bench.cases.grouped_gemm import routing


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    num_experts, top_k, width, inner = sizes
    rows = tokens * top_k
    order, _, ends = routing(tokens, num_experts, top_k, device)
    weights = torch.rand(tokens, top_k, device=device)
    dy, down_t = (
        activation(device, kernel.BLOCK, tokens, width),
        weight(device, kernel.BLOCK, num_experts, inner, width),
    )
    pre = normal(rows, 2 * inner, device=device)
    yield Case(
        f"fp8 experts down_gradient {tokens} x {top_k} of {num_experts}, {width} x {inner}",
        partial(kernel.down_gradient, *dy, weights, order, ends, *down_t, pre),
        partial(kernel.reference_down_gradient_of_codes, *dy, weights, order, ends, *down_t, pre),
        bytes=tokens * width + down_t[0].numel() + 2 * rows * 5 * inner,
        flops=2 * rows * inner * width,
    )
