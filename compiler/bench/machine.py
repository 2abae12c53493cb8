"""The machine that is measured on, and what it can do at most: a large copy, large products in bfloat16 and float8."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from dsc.compiler.bench.clock import seconds

COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
MATMUL_SIZE = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True)
class Machine:
    device: str
    """The GPU's or the processor's name."""
    torch: str
    triton: str
    bytes_per_second: float
    """Of a large copy, reading and writing counted."""
    flops_per_second: float
    """Of a large bfloat16 matrix product."""
    fp8_flops_per_second: float | None = None
    """Of a large float8 one; None where PyTorch has none."""

    def ceiling(self, kernel: str) -> float:
        """Of the products of a kernel."""
        return (kernel.startswith("fp8") and self.fp8_flops_per_second) or self.flops_per_second


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


def measure_machine(device: str) -> Machine:
    kind = device.partition(":")[0]
    source = torch.empty(COPY_BYTES[kind] // 2, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    size = MATMUL_SIZE[kind]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return Machine(
        device_name(device),
        version("torch"),
        _version("triton"),
        COPY_BYTES[kind] / seconds(lambda: target.copy_(source), device),
        2 * size**3 / seconds(lambda: a @ b, device),
        _fp8_flops_per_second(a, b, device),
    )


def _fp8_flops_per_second(a: Tensor, b: Tensor, device: str) -> float | None:
    if not device.startswith("cuda") or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    codes, other, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device=device)
    product = partial(torch._scaled_mm, codes, other.T, one, one, out_dtype=torch.bfloat16)
    return 2 * len(a) ** 3 / seconds(product, device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
