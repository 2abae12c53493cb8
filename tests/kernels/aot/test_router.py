"""kernels/router.py for the models with experts, compiled for every architecture."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.router import cases
from dsc.compiler.kernels.target import TARGETS

MODELS = ("deepseek-v3", "deepseek-v2", "kimi-k2", "qwen3-30b-a3b")


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str) -> None:
    measured = {}
    for zoo in MODELS if arch == "sm_90" else MODELS[:1]:
        (module,) = kernels(("router",), zoo, arch)
        measured |= {
            f"{zoo} {case.name}": compile_launches([module], case.run, arch) for case in cases(module, 128, "cpu")
        }
    for launches in measured.values():
        for launch in launches:
            assert launch.spilled == 0
            assert launch.shared <= TARGETS[arch].shared_memory
    check_budget("router", arch, measured)
