"""MLA attention at the dims of DeepSeek-V3, forward and backward, compiled for every architecture."""

from types import ModuleType

import pytest
import torch
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases import mla_attention, mla_attention_backward
from dsc.compiler.kernels.mla_common import shared_memory
from dsc.compiler.kernels.target import TARGETS, Target

NAMES = ("mla_attention", "mla_attention_backward", "mla_common")


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str) -> None:
    modules = kernels(NAMES, "deepseek-v3", arch)
    every = (*mla_attention.cases(modules[0], 4096, "cpu"), *mla_attention_backward.cases(modules[1], 4096, "cpu"))
    cases = every if arch == "sm_90" else every[::2]  # packed sequences are compiled for one architecture
    measured = {case.name: compile_launches(modules, case.run, arch) for case in cases}
    for launches in measured.values():
        for launch in launches:
            products = "_prepare" not in launch.kernel
            assert bool(launch.matrix) == products
            assert launch.shared <= TARGETS[arch].shared_memory
            if products:
                assert launch.shared <= stated(modules, launch.kernel, TARGETS[arch])
            if arch == "sm_90":
                assert launch.spilled == 0
                assert launch.matrix == (("HGMMA",) if products else ())
    check_budget("mla_attention", arch, measured)


def stated(modules: list[ModuleType], launch: str, target: Target) -> int:
    """What the compiler says that a launch takes, by which it refuses tiles."""
    forward, backward, _ = modules
    if "forward" in launch:
        q, k, stages = forward.BLOCK_Q, forward.BLOCK_K, forward.NUM_STAGES
        return shared_memory(target, q * 192, k * 320, q * k, stages)
    if "keys" in launch:
        q, k, stages = backward.KEYS_BLOCK_Q, backward.KEYS_BLOCK_K, backward.KEYS_STAGES
        return shared_memory(target, k * 320, q * 320, q * k, stages)
    q, k, stages = backward.QUERIES_BLOCK_Q, backward.QUERIES_BLOCK_K, backward.QUERIES_STAGES
    return shared_memory(target, q * 320, k * 320, q * k, stages)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_float32_lowers(arch: str) -> None:
    """Tiles of half the size still hold the 16 rows that a product needs."""
    modules = kernels(NAMES, "tiny", arch)
    q, kv, k_rope, rope = (
        torch.empty(1, 64, 8, 48),
        torch.empty(1, 64, 8, 64),
        torch.empty(1, 64, 16),
        torch.empty(2, 64, 16),
    )
    out, lse = torch.empty(1, 64, 8, 32), torch.empty(1, 8, 64)

    def launch() -> None:
        modules[0]._forward(q, kv, k_rope, rope, None)
        modules[1].backward(out, q, kv, k_rope, rope, None, out, lse)

    assert len(compile_launches(modules, launch, arch)) == 4
