"""kernels/weighted_swiglu.py at the widths of DeepSeek-V3, compiled for every architecture."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.weighted_swiglu import cases
from dsc.compiler.kernels.target import TARGETS


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str) -> None:
    modules = kernels(("weighted_swiglu",), "deepseek-v3", arch)
    measured = {case.name: compile_launches(modules, case.run, arch) for case in cases(modules[0], 128, "cpu")}
    for launches in measured.values():
        for launch in launches:
            assert launch.spilled == 0
            assert launch.shared <= TARGETS[arch].shared_memory
            if arch == "sm_90":
                assert launch.wide_loads > 0
    check_budget("weighted_swiglu", arch, measured)
