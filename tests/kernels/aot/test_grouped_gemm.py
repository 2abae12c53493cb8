"""The experts' products at the sizes of DeepSeek-V3 and Mixtral, compiled for every architecture."""

from importlib import import_module

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.kernels.grouped_gemm import shared_memory
from dsc.compiler.kernels.target import TARGETS

FILES = ("grouped_gemm", "grouped_gemm_backward")
TOKENS = (256, 16384)  # few rows for an expert, and many


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", FILES)
def test_budget(name: str, arch: str) -> None:
    measured = {}
    for model in ("deepseek-v3", "mixtral-8x7b") if arch == "sm_90" else ("deepseek-v3",):
        modules = kernels(FILES, model, arch)
        module = modules[FILES.index(name)]
        for tokens in TOKENS if arch == "sm_90" else TOKENS[1:]:
            for case in import_module(f"dsc.compiler.bench.cases.{name}").cases(module, tokens, "cpu"):
                measured[case.name] = compile_launches(modules, case.run, arch)
    for launches in measured.values():
        for launch in launches:
            assert launch.shared <= TARGETS[arch].shared_memory
            assert launch.matrix
            if arch == "sm_90":
                assert launch.spilled == 0
                assert launch.wide_loads > 0
                assert launch.matrix == ("HGMMA",)
    check_budget(name, arch, measured)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_shared_memory_is_not_underestimated(arch: str) -> None:
    """The formula that keeps tiles within the architecture's limit."""
    modules = kernels(FILES, "deepseek-v3", arch)
    forward, backward = modules
    tables = {
        "_gate_up_kernel": (forward.GATE_UP, 2),
        "_product_kernel": (forward.PRODUCT, 1),
        "_down_gradient_kernel": (backward.DOWN_GRADIENT, 1),
        "_weight_gradient_kernel": (backward.WEIGHT_GRADIENT, 1),
    }
    for name, module in zip(FILES, modules, strict=True):
        for case in import_module(f"dsc.compiler.bench.cases.{name}").cases(module, TOKENS[1], "cpu"):
            for launch in compile_launches(modules, case.run, arch):
                table, weights = tables[launch.kernel.split(".")[0]]
                assert launch.shared <= shared_memory(table[None], TARGETS[arch], weights)
