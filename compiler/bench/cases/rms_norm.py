"""RMSNorm at every width of the model, forward and backward, with and without the residual add."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsc.compiler.bench.case import Case, normal

EPS = 1e-6


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    def norm(x: Tensor, residual: Tensor | None, weight: Tensor) -> Tensor:
        y: Tensor = kernel.reference(x, residual, weight, EPS)[0]
        return y

    def add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, z, _ = kernel.reference(x, residual, weight, EPS)
        return z, y

    for width in kernel.FORWARD:
        label = f"{tokens} x {width}"
        x, residual, dy, dz = (normal(tokens, width, device=device) for _ in range(4))
        weight = normal(width, device=device)
        rstd = torch.rand(tokens, device=device)
        row = 2 * width * tokens
        yield Case(
            f"rms_norm {label}",
            partial(kernel.rms_norm, x, weight, EPS),
            partial(norm, x, None, weight),
            bytes=2 * row,
            library=partial(F.rms_norm, x, (width,), weight, EPS),
        )
        yield Case(
            f"add_rms_norm {label}",
            partial(kernel.add_rms_norm, x, residual, weight, EPS),
            partial(add_norm, x, residual, weight),
            bytes=4 * row,
        )
        yield Case(
            f"rms_norm_backward {label}",
            partial(kernel._backward, dy, None, x, weight, rstd),
            partial(kernel.reference_backward, dy, None, x, weight, rstd),
            bytes=3 * row,
        )
        yield Case(
            f"add_rms_norm_backward {label}",
            partial(kernel._backward, dy, dz, x, weight, rstd),
            partial(kernel.reference_backward, dy, dz, x, weight, rstd),
            bytes=4 * row,
        )
