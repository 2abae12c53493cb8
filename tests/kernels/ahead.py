"""Ahead-of-time compilation with no GPU: every launch that emitted code makes, for any architecture.

The emitted launch code itself runs; only Triton's last step, handing the kernel to a driver, is left out. Tensors lie
on the CPU and are never touched, so those of a 671B model take no memory.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from dsc.compiler.kernels.target import TARGETS

NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = ("HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA")  # matrix units: Ampere, Hopper bf16 and fp8, Blackwell both


@dataclass(frozen=True)
class Compiled:
    """What ptxas, or LLVM for AMD, made of one launch."""

    function: str
    registers: int
    spilled: int
    """Bytes of registers spilled to memory (ptxas), or spilled vector registers (AMD)."""
    shared: int
    """Bytes of shared memory of one program."""
    instructions: int
    wide_loads: int
    """128-bit loads from global memory."""
    matrix: tuple[str, ...]
    """Families of matrix instructions that occur."""
    arguments: dict[str, Any]
    """The keyword arguments of the launch, its tile among them."""


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, arch: str) -> None:
        cuda = arch.startswith("sm_")
        self.target = GPUTarget("cuda", int(arch[3:]), 32) if cuda else GPUTarget("hip", arch, 64)
        properties = {"max_shared_mem": 1 << 30, "multiprocessor_count": TARGETS[arch].num_sms, "warpSize": 32}
        self.utils = type("Utils", (), {"get_device_properties": staticmethod(lambda device: properties)})

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def recorded(arch: str) -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """Within, launches compile for an architecture instead of running.

    Yields the function, compiled kernel and keyword arguments of each, without repetitions. Matrix products of PyTorch
    between launches are skipped.
    """
    compiled: list[tuple[str, Any, dict[str, Any]]] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **options)
        if not any(kernel is known for _, known, _ in compiled):
            compiled.append((self.__name__, kernel, options))
        return kernel

    original, addmm = JITFunction.run, torch.addmm
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    driver = triton.runtime.driver
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        before = driver._active if hasattr(driver, "_active") else None
        driver.set_active(_Driver(arch))
        JITFunction.run, torch.addmm = run, lambda *operands, out, **options: out
        try:
            yield compiled
        finally:
            JITFunction.run, torch.addmm = original, addmm
            if before is not None:
                driver.set_active(before)


def compile_launches(module: ModuleType, launch: Callable[[], object], arch: str) -> list[Compiled]:
    """What the launches of one call come to, in a package of kernels that `module` is of."""
    for name, sibling in list(sys.modules.items()):
        if name.startswith(f"{module.__package__}.") and hasattr(sibling, "runs_triton"):
            sibling.runs_triton = lambda x: True
    with recorded(arch) as kernels, torch.no_grad():
        launch()
    return [_statistics(*launched) for launched in kernels]


def _statistics(name: str, kernel: Any, arguments: dict[str, Any]) -> Compiled:
    if "cubin" not in kernel.asm:
        return _amd(name, kernel, arguments)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", sass, re.M)
    families = {opcode.split(".")[0] for opcode in opcodes}
    return Compiled(
        name,
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=kernel.metadata.shared,
        instructions=len(opcodes),
        wide_loads=sum(op.startswith(("LDG", "LDGSTS")) and ".128" in op for op in opcodes),
        matrix=tuple(family for family in MATRIX if family in families),
        arguments=arguments,
    )


def _amd(name: str, kernel: Any, arguments: dict[str, Any]) -> Compiled:
    text = kernel.asm["amdgcn"]

    def read(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", text)
        assert found is not None, key
        return int(found[1])

    return Compiled(
        name,
        registers=read("vgpr_count"),
        spilled=read("vgpr_spill_count"),
        shared=max(kernel.metadata.shared, read("group_segment_fixed_size")),
        instructions=len(re.findall(r"^\s+[sv]_\w+", text, re.M)),
        wide_loads=len(re.findall(r"(?:global|buffer)_load_dwordx4", text)),
        matrix=("MFMA",) if "v_mfma" in text else (),
        arguments=arguments,
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([NVIDIA / name, *arguments], capture_output=True, text=True, check=True).stdout
