"""kernels/latent_cache.py at the dims of DeepSeek-V3, compiled for every architecture that takes its rows."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.paged import kernels

from dsc.compiler.bench.cases.latent_cache import cases
from dsc.compiler.kernels.target import TARGETS

FP8 = [arch for arch, target in TARGETS.items() if target.fp8]


@pytest.mark.parametrize(("arch", "rows"), [*((arch, "plain") for arch in TARGETS), *((arch, "fp8") for arch in FP8)])
def test_budget(arch: str, rows: str) -> None:
    module, _ = kernels(rows, "deepseek-v3", arch)
    measured = {case.name: compile_launches([module], case.run, arch) for case in cases(module, 4096, "cpu")}
    for launches in measured.values():
        assert len(launches) == 1
        assert launches[0].shared <= TARGETS[arch].shared_memory
        assert launches[0].spilled == 0
        if arch.startswith("sm_"):
            assert launches[0].wide_loads > 0
    check_budget(f"latent_cache_{rows}", arch, measured)
