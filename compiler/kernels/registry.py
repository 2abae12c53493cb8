"""The record of every kernel that needs one, by name."""

from __future__ import annotations

from dsc.compiler.kernels.attention_rows import ATTENTION_ROWS
from dsc.compiler.kernels.expert_dispatch import EXPERT_DISPATCH
from dsc.compiler.kernels.fp8_block import FP8_CODES, FP8_EXPERTS, FP8_LINEAR
from dsc.compiler.kernels.fp8_gemm import FP8_GEMM
from dsc.compiler.kernels.fp8_grouped_gemm import FP8_GROUPED_GEMM, FP8_GROUPED_GEMM_BACKWARD
from dsc.compiler.kernels.fp8_quantize import FP8_QUANTIZE, SWIGLU_QUANTIZE
from dsc.compiler.kernels.gqa_attention import GQA_ATTENTION, GQA_ATTENTION_BACKWARD
from dsc.compiler.kernels.gqa_decode import GQA_DECODE
from dsc.compiler.kernels.grouped_gemm import GROUPED_GEMM, GROUPED_GEMM_BACKWARD
from dsc.compiler.kernels.kernel import Kernel
from dsc.compiler.kernels.latent_cache import LATENT_CACHE, MLA_DECODE
from dsc.compiler.kernels.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from dsc.compiler.kernels.mla_attention import MLA_ATTENTION, MLA_ATTENTION_BACKWARD, MLA_COMMON
from dsc.compiler.kernels.rms_norm import RMS_NORM
from dsc.compiler.kernels.rope import ROPE
from dsc.compiler.kernels.router import ROUTER
from dsc.compiler.kernels.swiglu import SWIGLU, SWIGLU_FORMULA

KERNELS = {
    kernel.name: kernel
    for kernel in (
        ATTENTION_ROWS,
        EXPERT_DISPATCH,
        FP8_CODES,
        FP8_EXPERTS,
        FP8_GEMM,
        FP8_GROUPED_GEMM,
        FP8_GROUPED_GEMM_BACKWARD,
        FP8_LINEAR,
        FP8_QUANTIZE,
        GQA_ATTENTION,
        GQA_ATTENTION_BACKWARD,
        GQA_DECODE,
        GROUPED_GEMM,
        GROUPED_GEMM_BACKWARD,
        LATENT_CACHE,
        LINEAR_CROSS_ENTROPY,
        MLA_ATTENTION,
        MLA_ATTENTION_BACKWARD,
        MLA_COMMON,
        MLA_DECODE,
        RMS_NORM,
        ROPE,
        ROUTER,
        SWIGLU,
        SWIGLU_FORMULA,
        SWIGLU_QUANTIZE,
    )
}


def kernel_named(name: str) -> Kernel:
    """The record of a kernel; a kernel that only calls others has the default."""
    return KERNELS.get(name, Kernel(name))
