"""The products of the experts: forward, and the gradient of their input."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, filled, normal


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    num_experts, top_k, width, inner = sizes
    rows = tokens * top_k
    order, _, ends = routing(tokens, num_experts, top_k, device)
    weights = torch.rand(tokens, top_k, device=device)
    x, h, dpre = (normal(*shape, device=device) for shape in ((tokens, width), (rows, inner), (rows, 2 * inner)))
    gate_up_proj, down_proj = expert_weights(num_experts, width, inner, device)
    label = f"{tokens} x {top_k} of {num_experts}, {width} x {inner}"
    yield Case(
        f"experts gate_up {label}",
        partial(kernel.gate_up, x, weights, order, ends, gate_up_proj, True),
        partial(kernel.reference_gate_up, x, weights, order, ends, gate_up_proj),
        bytes=2 * (x.numel() + gate_up_proj.numel() + 3 * h.numel()),
        flops=2 * rows * 2 * inner * width,
        library=partial(_gate_up, x, weights, order, ends, gate_up_proj),
    )
    yield Case(
        f"experts down {label}",
        partial(kernel.product, h, down_proj, ends),
        partial(kernel.reference_product, h, down_proj, ends),
        bytes=2 * (h.numel() + down_proj.numel() + rows * width),
        flops=2 * rows * inner * width,
        library=lambda: grouped_mm(h, down_proj.mT, ends),
    )
    yield Case(
        f"experts gate_up_dgrad {label}",
        partial(kernel.product, dpre, gate_up_proj, ends, True),
        partial(kernel.reference_product, dpre, gate_up_proj, ends, True),
        bytes=2 * (dpre.numel() + gate_up_proj.numel() + rows * width),
        flops=2 * rows * 2 * inner * width,
        library=lambda: grouped_mm(dpre, gate_up_proj, ends),
    )


def grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """PyTorch's; where it has none, which raises, there is no column."""
    return F.grouped_mm(a, b, offs=ends)


def _gate_up(x: Tensor, weights: Tensor, order: Tensor, ends: Tensor, gate_up_proj: Tensor) -> Tensor:
    gate, up = grouped_mm(x[order // weights.shape[1]], gate_up_proj.mT, ends).chunk(2, -1)
    return F.silu(gate) * up * weights.flatten()[order].unsqueeze(1).to(x.dtype)


def expert_weights(num_experts: int, width: int, inner: int, device: str) -> tuple[Tensor, Tensor]:
    """gate_up_proj and down_proj with products of order one."""
    gate_up_proj = normal(num_experts, 2 * inner, width, device=device, std=width**-0.5)
    return gate_up_proj, normal(num_experts, width, inner, device=device, std=inner**-0.5)


def routing(tokens: int, num_experts: int, top_k: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """order, position and ends of tokens with top_k different experts at random."""
    if not filled():
        shapes = (tokens * top_k,), (tokens, top_k), (num_experts,)
        order, position, ends = (torch.empty(shape, dtype=torch.int32, device=device) for shape in shapes)
        return order, position, ends
    experts = torch.rand(tokens, num_experts, device=device).topk(top_k).indices.flatten()
    order = experts.argsort(stable=True)
    ends = experts.bincount(minlength=num_experts).cumsum(0)
    return order.int(), order.argsort().int().view(tokens, top_k), ends.int()
