"""The FP8 products of the model's linear layers: forward, dgrad, wgrad, and forward for a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case, filled

FEW = (16, 32, 64, 128)
"""Tokens of decoding, one number for each of the small tiles."""


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    for n, k in sizes:
        w, w_scale = _codes(n, k, device), _scales(n, k, kernel.BLOCK, kernel.BLOCK, device)
        for m in (*FEW, tokens):
            yield _case(
                kernel, "forward", m, n, k, _codes(m, k, device), _scales(m, k, 1, kernel.BLOCK, device), w, w_scale
            )
        dy, dy_scale = _codes(tokens, n, device), _scales(tokens, n, 1, kernel.BLOCK, device)
        w_t = _codes(k, n, device)
        yield _case(kernel, "dgrad", tokens, k, n, dy, dy_scale, w_t, w_scale.mT)
        padded = -(-tokens // kernel.BLOCK) * kernel.BLOCK  # as columns are quantized
        dy_t, dy_scale_t = _codes(n, padded, device), _scales(n, padded, 1, kernel.BLOCK, device)
        x_t, x_scale_t = _codes(k, padded, device), _scales(k, padded, 1, kernel.BLOCK, device)
        yield _case(kernel, "wgrad", n, k, padded, dy_t, dy_scale_t, x_t, x_scale_t)


def _case(kernel: ModuleType, name: str, rows: int, columns: int, depth: int, *operands: Tensor) -> Case:
    multiply = kernel.multiply_along_rows if name == "wgrad" else kernel.multiply
    return Case(
        f"fp8_gemm_{name} {rows} x {columns} x {depth}",
        partial(multiply, *operands, torch.bfloat16),
        partial(kernel.reference, *operands, torch.bfloat16),
        bytes=sum(operand.nbytes for operand in operands) + 2 * rows * columns,
        flops=2 * rows * columns * depth,
        library=partial(_whole_tensor, operands[0], operands[2]),
    )


def _whole_tensor(a: Tensor, b: Tensor) -> Tensor:
    """PyTorch's product with one scale for each operand, not for its blocks: to compare speeds, not results."""
    scale = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b.T, scale, scale, out_dtype=torch.bfloat16)


def _codes(rows: int, columns: int, device: str) -> Tensor:
    if not filled():
        return torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)
    return (100 * torch.randn(rows, columns, device=device)).to(torch.float8_e4m3fn)


def _scales(rows: int, columns: int, block_rows: int, block: int, device: str) -> Tensor:
    return 1e-3 + torch.rand(-(-columns // block), -(-rows // block_rows), device=device).T
