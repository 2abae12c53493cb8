"""kernels/fp8_quantize.py at DeepSeek-V3's sizes, compiled for every architecture that has float8_e4m3fn."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.fp8_quantize import cases
from dsc.compiler.kernels.fp8_quantize import shared_memory
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.kernels.tuning import NoTile


@pytest.mark.parametrize("arch", [arch for arch, target in TARGETS.items() if target.fp8])
def test_budget(arch: str) -> None:
    (module,) = kernels(("fp8_quantize",), "deepseek-v3", arch)
    measured = {case.name: compile_launches([module], case.run, arch) for case in cases(module, 128, "cpu")}
    for launches in measured.values():
        for launch in launches:
            assert launch.spilled == 0
            assert launch.shared <= shared_memory(128, 128) <= TARGETS[arch].shared_memory
            if arch == "sm_90":
                assert launch.wide_loads > 0
    check_budget("fp8_quantize", arch, measured)


@pytest.mark.parametrize("scale", ["float32", "ue8m0"])
def test_either_format_compiles(scale: str) -> None:
    (module,) = kernels(("fp8_quantize",), "deepseek-v3", "sm_90", precision__linear__scale=scale)
    case = next(cases(module, 128, "cpu"))
    assert all(launch.spilled == 0 for launch in compile_launches([module], case.run, "sm_90"))


@pytest.mark.parametrize("arch", [arch for arch, target in TARGETS.items() if not target.fp8])
def test_no_tile_without_float8(arch: str) -> None:
    with pytest.raises(NoTile):
        kernels(("fp8_quantize",), "deepseek-v3", arch)
