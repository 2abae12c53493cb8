"""What a spec may add to a kernel, SwiGLU's limit and the z-loss, costs no spills: DeepSeek-V3 with both, on Hopper."""

import sys
from importlib import import_module

import pytest
from kernels.ahead import compile_launches
from kernels.lab import kernels

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
IMPORTED = ("grouped_gemm", "grouped_gemm_backward", "fp8_quantize")
OPTIONS = {"ffn__swiglu_limit": 10.0, "z_loss": 1e-4}


@pytest.mark.parametrize("name", MATRIX)
def test_options_cost_no_spills(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = kernels((name, *IMPORTED), "deepseek-v3", **OPTIONS)
    module = modules[0]
    if name == "linear_cross_entropy":
        assert module.Z_LOSS == 1e-4
        monkeypatch.setattr(module, "_multiply", lambda *operands, add: None)  # the library's
        monkeypatch.setattr(module, "VOCAB_CHUNK", module.VOCAB_SIZE)
    else:
        assert "LIMIT" in vars(sys.modules[f"{module.__package__}.swiglu_formula"])
    for case in import_module(f"dsc.compiler.bench.cases.{name}").cases(module, 4096, "cpu"):
        for launch in compile_launches(modules, case.run, "sm_90"):
            assert launch.spilled == 0, (case.name, launch)
            assert launch.shared <= TARGETS["sm_90"].shared_memory
            assert launch.matrix == MATRIX[name]
            assert launch.wide_loads > 0
