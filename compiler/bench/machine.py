"""The machine that is measured on, and what it can do at most: a large copy and a large matrix product."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

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
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
