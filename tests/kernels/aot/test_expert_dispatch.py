"""kernels/expert_dispatch.py at the sizes of DeepSeek-V3 and Mixtral, compiled for every architecture."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.expert_dispatch import cases
from dsc.compiler.kernels.target import TARGETS

MODELS = ("deepseek-v3", "mixtral-8x7b")


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str) -> None:
    measured = {}
    for model in MODELS if arch == "sm_90" else MODELS[:1]:
        (module,) = kernels(("expert_dispatch",), model, arch)
        for case in cases(module, 4096, "cpu"):
            measured[case.name] = compile_launches([module], case.run, arch)
    for name, launches in measured.items():
        for launch in launches:
            assert launch.shared <= TARGETS[arch].shared_memory
            assert launch.spilled == 0
            if arch == "sm_90" and name.startswith("combine "):
                assert launch.wide_loads > 0
    check_budget("expert_dispatch", arch, measured)
