"""MLA attention at the dims of DeepSeek-V3, forward and backward, compiled for every architecture."""

from types import ModuleType

import pytest
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
