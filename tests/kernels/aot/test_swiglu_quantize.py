"""kernels/swiglu_quantize.py at the widths of DeepSeek-V3, compiled for every architecture that has float8_e4m3fn."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.swiglu_quantize import cases
from dsc.compiler.kernels.fp8_quantize import shared_memory
from dsc.compiler.kernels.target import TARGETS


@pytest.mark.parametrize("arch", [arch for arch, target in TARGETS.items() if target.fp8])
def test_budget(arch: str) -> None:
    modules = kernels(("swiglu_quantize", "fp8_quantize"), "deepseek-v3", arch)
    measured = {case.name: compile_launches(modules, case.run, arch) for case in cases(modules[0], 128, "cpu")}
    for launches in measured.values():
        for launch in launches:
            assert launch.spilled == 0
            assert launch.shared <= shared_memory(128, 128) <= TARGETS[arch].shared_memory
            if arch == "sm_90":
                assert launch.wide_loads > 0
    check_budget("swiglu_quantize", arch, measured)
