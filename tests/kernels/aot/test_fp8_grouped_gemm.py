"""The experts' FP8 products at the sizes of DeepSeek-V3 and Mixtral, compiled for every architecture with the type."""

from importlib import import_module

import pytest
from kernels.ahead import Compiled, check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.kernels.fp8_grouped_gemm import shared_memory
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.kernels.tuning import NoTile

UNDER = ("fp8_quantize", "expert_dispatch", "grouped_gemm", "grouped_gemm_backward")
FILES = ("fp8_grouped_gemm", "fp8_grouped_gemm_backward")
TOKENS = (256, 16384)  # few rows for an expert, and many
FP8 = [arch for arch, target in TARGETS.items() if target.fp8]


def modules(model: str, arch: str):
    return kernels((*UNDER, *FILES), model, arch, precision__linear__kind="fp8_block")


def launches(name: str, model: str, arch: str, tokens: int) -> dict[str, list[Compiled]]:
    files = modules(model, arch)
    module = files[len(UNDER) + FILES.index(name)]
    cases = import_module(f"dsc.compiler.bench.cases.{name}").cases(module, tokens, "cpu")
    return {case.name: compile_launches(files, case.run, arch) for case in cases}


@pytest.mark.parametrize("arch", FP8)
@pytest.mark.parametrize("name", FILES)
def test_budget(name: str, arch: str) -> None:
    measured = {}
    for model in ("deepseek-v3", "mixtral-8x7b") if arch == "sm_90" else ("deepseek-v3",):
        for tokens in TOKENS if arch == "sm_90" else TOKENS[1:]:
            measured |= launches(name, model, arch, tokens)
    for case in measured.values():
        for launch in case:
            assert launch.shared <= TARGETS[arch].shared_memory
            assert launch.matrix
            assert launch.spilled == 0
            if arch == "sm_90":
                assert launch.wide_loads > 0
                assert launch.matrix == ("QGMMA",)
    check_budget(name, arch, measured)


@pytest.mark.parametrize("arch", FP8)
def test_shared_memory_is_not_underestimated(arch: str) -> None:
    """The formula that keeps tiles within the architecture's limit."""
    *_, forward, backward = modules("deepseek-v3", arch)
    tables = {
        "_gate_up_kernel": (forward.GATE_UP, 2),
        "_product_kernel": (forward.PRODUCT, 1),
        "_down_gradient_kernel": (backward.DOWN_GRADIENT, 1),
    }
    for name in FILES:
        for case in launches(name, "deepseek-v3", arch, TOKENS[1]).values():
            for launch in case:
                table, weights = tables[launch.kernel.split(".")[0]]
                assert launch.shared <= shared_memory(table[None], 128, weights)


@pytest.mark.parametrize("arch", [arch for arch in TARGETS if arch not in FP8])
def test_no_tile_where_the_type_is_missing(arch: str) -> None:
    with pytest.raises(NoTile):
        modules("deepseek-v3", arch)
