"""The FP8 products of the experts: forward, and the gradient of their input."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case, filled
from dsc.compiler.bench.cases.grouped_gemm import routing


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    num_experts, top_k, width, inner = sizes
    rows, block, bf16 = tokens * top_k, kernel.BLOCK, torch.bfloat16
    order, _, ends = routing(tokens, num_experts, top_k, device)
    weights = torch.rand(tokens, top_k, device=device)
    x, h, dpre = (activation(device, block, *shape) for shape in ((tokens, width), (rows, inner), (rows, 2 * inner)))
    gate_and_up = weight(device, block, 2 * num_experts, inner, width)
    down = weight(device, block, num_experts, width, inner)
    gate_up_t = weight(device, block, num_experts, width, 2 * inner)
    label = f"{tokens} x {top_k} of {num_experts}, {width} x {inner}"
    yield Case(
        f"fp8 experts gate_up {label}",
        partial(kernel.gate_up, *x, weights, order, ends, *gate_and_up, bf16, True),
        partial(kernel.reference_gate_up, *x, weights, order, ends, *gate_and_up, bf16),
        bytes=tokens * width + gate_and_up[0].numel() + rows * inner * 5,
        flops=2 * rows * 2 * inner * width,
    )
    for name, rows_of, matrix in (("down", h, down), ("gate_up_dgrad", dpre, gate_up_t)):
        yield Case(
            f"fp8 experts {name} {label}",
            partial(kernel.product, *rows_of, ends, *matrix, bf16),
            partial(kernel.reference_product_of_codes, *rows_of, ends, *matrix, bf16),
            bytes=rows_of[0].numel() + matrix[0].numel() + 2 * rows * width,
            flops=2 * rows_of[0].numel() * width,
            library=partial(_scales_of_rows, rows_of[0], matrix[0], ends),
        )


def _scales_of_rows(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """PyTorch's product with one scale for each row, not for its blocks: to compare speeds, not results."""
    ones = torch.ones(len(x), device=x.device), torch.ones(w.shape[:2], device=x.device)
    return torch._scaled_grouped_mm(x, w.mT, *ones, offs=ends, out_dtype=torch.bfloat16)


def codes(device: str, *shape: int) -> Tensor:
    """Random codes."""
    q = torch.empty(shape, device=device, dtype=torch.float8_e4m3fn)
    if not filled():
        return q
    for part in q:  # one matrix at a time: they are drawn in float32
        part.copy_(torch.randn(part.shape, device=device) * 60)
    return q


def activation(device: str, block: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Codes with a scale for each block of a row; values of order one."""
    q = codes(device, 1, rows, columns)[0]
    return q, torch.rand(-(-columns // block), rows, device=device).T / 60


def weight(device: str, block: int, matrices: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Codes with a scale for each square block; products of order one."""
    q = codes(device, matrices, rows, columns)
    scale = torch.rand(matrices, -(-rows // block), -(-columns // block), device=device)
    return q, scale / 60 * columns**-0.5
