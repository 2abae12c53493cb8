"""The gradients of the experts' products: of h and SwiGLU, and of both weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case, normal
from dsc.compiler.bench.cases.grouped_gemm import expert_weights, grouped_mm, routing


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    num_experts, top_k, width, inner = sizes
    rows = tokens * top_k
    order, _, ends = routing(tokens, num_experts, top_k, device)
    weights = torch.rand(tokens, top_k, device=device)
    dy, h, pre = (normal(*shape, device=device) for shape in ((tokens, width), (rows, inner), (rows, 2 * inner)))
    gate_up_proj, down_proj = expert_weights(num_experts, width, inner, device)
    label = f"{tokens} x {top_k} of {num_experts}, {width} x {inner}"
    yield Case(
        f"experts down_gradient {label}",
        partial(kernel.down_gradient, dy, weights, order, ends, down_proj, pre),
        partial(kernel.reference_down_gradient, dy, weights, order, ends, down_proj, pre),
        bytes=2 * (dy.numel() + down_proj.numel() + 2 * pre.numel() + h.numel()),
        flops=2 * rows * inner * width,
    )
    token = order // top_k
    yield Case(
        f"experts down_wgrad {label}",
        partial(kernel.weight_gradient, dy, h, order, ends, "dy", top_k),
        lambda: kernel.reference_weight_gradient(dy[token], h, ends),
        bytes=2 * (dy.numel() + h.numel() + down_proj.numel()),
        flops=2 * rows * inner * width,
        library=lambda: grouped_mm(dy[token].T, h, ends),
    )
    yield Case(
        f"experts gate_up_wgrad {label}",
        partial(kernel.weight_gradient, pre, dy, order, ends, "x", top_k),
        lambda: kernel.reference_weight_gradient(pre, dy[token], ends),
        bytes=2 * (dy.numel() + pre.numel() + gate_up_proj.numel()),
        flops=2 * rows * 2 * inner * width,
        library=lambda: grouped_mm(pre.T, dy[token], ends),
    )
