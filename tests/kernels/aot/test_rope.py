"""kernels/rope.py at the heads of DeepSeek-V3 (interleaved) and Llama 3.1 8B (half), for every architecture."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.rope import cases
from dsc.compiler.kernels.target import TARGETS


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str) -> None:
    measured = {}
    for zoo in ("deepseek-v3", "llama-3.1-8b"):
        (module,) = kernels(("rope",), zoo, arch)
        chosen = [case for case in cases(module, 128, "cpu") if "backward" not in case.name]
        measured |= {f"{zoo} {case.name}": compile_launches([module], case.run, arch) for case in chosen}
    for launches in measured.values():
        for launch in launches:
            assert launch.spilled == 0
            assert launch.shared <= TARGETS[arch].shared_memory
            if arch == "sm_90":
                assert launch.wide_loads > 0
    check_budget("rope", arch, measured)
