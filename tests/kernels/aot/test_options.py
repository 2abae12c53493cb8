"""What a spec may add to a kernel costs no spills on Hopper, and other dtypes than bfloat16 compile."""

import sys
from importlib import import_module

import pytest
import torch
from kernels.ahead import compile_launches
from kernels.lab import dims, kernels

from dsc.compiler.bench.sizes import SIZES
from dsc.compiler.kernels.target import TARGETS

BF16, FP8 = ("HGMMA",), ("QGMMA",)
MATRIX = {
    "swiglu": (),
    "swiglu_quantize": (),
    "grouped_gemm": BF16,
    "grouped_gemm_backward": BF16,
    "fp8_grouped_gemm": FP8,
    "fp8_grouped_gemm_backward": FP8,
    "linear_cross_entropy": BF16,
}
MAP = "grouped_gemm_tiles_kernel"
"""Which rows of which expert a tile has: it multiplies nothing."""
OPTIONS = {"ffn__swiglu_limit": 10.0, "z_loss": 1e-4}
"""SwiGLU's limit and the z-loss, of DeepSeek-V3."""


@pytest.mark.parametrize("name", MATRIX)
def test_options_cost_no_spills(name: str) -> None:
    (module,) = kernels((name,), "deepseek-v3", **OPTIONS)
    if name == "linear_cross_entropy":
        assert module.Z_LOSS == 1e-4
    else:
        assert "LIMIT" in vars(sys.modules[f"{module.__package__}.swiglu_formula"])
    cases = import_module(f"dsc.compiler.bench.cases.{name}").cases
    for case in cases(module, SIZES[name](dims("deepseek-v3")), 4096, "cpu"):
        for launch in compile_launches(module, case.run, "sm_90"):
            assert launch.spilled == 0, (case.name, launch)
            assert launch.shared <= TARGETS["sm_90"].shared_memory
            if launch.function != MAP:
                assert launch.matrix == MATRIX[name]
                assert launch.wide_loads > 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_attention_in_float32_lowers(arch: str) -> None:
    """Tiles of half the size still have the 16 rows that a product needs."""
    forward, backward = kernels(("mla_attention", "mla_attention_backward"), "tiny", arch)
    q, kv, k_rope, rope = (torch.empty(shape) for shape in ((1, 64, 8, 48), (1, 64, 8, 64), (1, 64, 16), (2, 64, 16)))
    out, lse = torch.empty(1, 64, 8, 32), torch.empty(1, 8, 64)

    def launch() -> None:
        forward._forward(q, kv, k_rope, rope)
        backward.backward(out, q, kv, k_rope, rope, out, lse)

    assert len(compile_launches(forward, launch, arch)) == 4


@pytest.mark.parametrize("scale", ["float32", "ue8m0"])
def test_either_format_of_scales_compiles(scale: str) -> None:
    (module,) = kernels(("fp8_quantize",), "deepseek-v3", "sm_90", precision__linear__scale=scale)
    launches = compile_launches(module, lambda: module.quantize_rows(torch.empty(128, 7168).bfloat16()), "sm_90")
    assert [launch.spilled for launch in launches] == [0]
