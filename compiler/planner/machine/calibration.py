"""The one table of constants that the time model does not derive, each with where it is from.

GPUs of Hopper are measured in DeepSeek's own training trace (github.com/deepseek-ai/profile-data, train.json: a pair of
forward and backward chunks of four MoE layers on an H800, 4096 tokens, EP64, 129.0 ms) and in the step breakdown of
their production run (Insights into DeepSeek-V3, ISCA 2025, table 4). No other measurement of a whole step took part,
so every other published run is a test of the model and not an input. Families without a measurement hold Hopper's
utilisation, not its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Provenance = Literal["derived", "measured", "assumed"]

KernelClass = Literal["fp8_gemm", "fp8_grouped", "gemm", "fp32_gemm", "attention", "memory", "cast"]
"""How a kernel is limited: FP8 block-scaled products, those of experts' groups, products in bfloat16 (dense or grouped)
and float32, attention, memory traffic, and casts to FP8."""

TRACE = "DeepSeek profile-data train.json (H800, 129.0 ms)"
TABLE_4 = "Insights into DeepSeek-V3, ISCA 2025, table 4"
REPORT = "DeepSeek-V3 report, arXiv 2412.19437"


@dataclass(frozen=True)
class Figure:
    value: float
    provenance: Provenance
    source: str


@dataclass(frozen=True)
class Calibration:
    """Efficiencies are shares of a dense peak, or of memory bandwidth, of a whole GPU that does nothing else."""

    forward: dict[KernelClass, Figure]
    """Of a product with a weight and of attention forward; of memory bandwidth for `memory` and `cast`."""
    input_gradient: dict[KernelClass, Figure]
    """The same for the products that make the input's gradient, and for attention backward."""
    weight_gradient: dict[KernelClass, Figure]
    attention_backward_products: Figure
    """Products that a fused attention's backward really does for each one of the graph's count."""
    fp32_rate: Figure
    """float32 products (TF32 on a GPU) against the peak of bfloat16."""
    kernel_floor: Figure
    """Seconds that the smallest kernel takes."""
    launch: Figure
    """Seconds of the host for each kernel; no stage is faster than its launches."""
    host_wait: Figure
    """Seconds that the GPU idles where the host reads a number from it before it launches what comes next."""
    communication_share: Figure
    """Of a GPU's multiprocessors, what overlapped communication occupies."""
    overlapped_dispatch: Figure
    """Of the network's nominal bandwidth, what an overlapped expert dispatch reaches."""
    overlapped_combine: Figure
    imbalance: Figure
    """Time of a MoE layer under real routing over that under balanced routing."""
    sync: Figure
    """Time that a pipeline loses between its ranks on top of its schedule's bubble, as a share of its step."""
    uncertainty: Figure
    """Relative error of a step's time, either way, as far as its lines are measured or derived."""
    of_assumed: Figure
    """The same of lines that are assumed."""


def _trace(value: float, kernels: str) -> Figure:
    return Figure(value, "measured", f"{TRACE}: {kernels}")


# The trace ran its products on 112 of 132 SMs, beside kernels of communication on the other 20.
WHOLE_GPU = 132 / 112

_GEMM = Figure(0.70, "assumed", "AutoParallel compute_estimation.py: 0.7 of peak for any product")
_MEMORY = _trace(0.69, "kernels that neither multiply, attend nor cast 16.9 ms for the graph's 38.9 GB")
_CAST = _trace(0.424, "casts and transposes to FP8 16.7 ms for the graph's 23.7 GB")

OF_ASSUMED = Figure(
    0.55, "assumed", "torchtitan's Llama 3.1 8B on 8 H100, most of it assumed: off by up to 40 %, in eager mode"
)

HOPPER = Calibration(
    forward={
        "fp8_gemm": _trace(0.455 * WHOLE_GPU, "fp8_ptp128c kernels 18.84 ms, 900 TFLOPS"),
        "fp8_grouped": _trace(0.509 * WHOLE_GPU, "m_grouped_fp8_ptp128c kernels 22.93 ms, 1007 TFLOPS"),
        "gemm": _GEMM,
        "fp32_gemm": _GEMM,
        "attention": _trace(0.56 * WHOLE_GPU, "FlashAttention forward 4.95 ms, 556 TFLOPS"),
        "memory": _MEMORY,
        "cast": _CAST,
    },
    input_gradient={
        "fp8_gemm": _trace(0.455 * WHOLE_GPU, "fp8_ptp128c kernels 18.84 ms, 900 TFLOPS"),
        "fp8_grouped": _trace(0.509 * WHOLE_GPU, "m_grouped_fp8_ptp128c kernels 22.93 ms, 1007 TFLOPS"),
        "gemm": _GEMM,
        "fp32_gemm": _GEMM,
        "attention": _trace(
            0.41 * WHOLE_GPU, "FlashAttention backward 17.0 ms, 404 TFLOPS with what it computes again"
        ),
        "memory": _MEMORY,
        "cast": _CAST,
    },
    weight_gradient={
        "fp8_gemm": _trace(0.295 * WHOLE_GPU, "fp8_dptp128c_acc kernels 32.76 ms, 584 TFLOPS"),
        "fp8_grouped": _trace(0.295 * WHOLE_GPU, "fp8_dptp128c_acc kernels 32.76 ms, 584 TFLOPS"),
        "gemm": _GEMM,
        "fp32_gemm": _GEMM,
        "attention": _GEMM,  # has no weight
        "memory": _MEMORY,
        "cast": _CAST,
    },
    attention_backward_products=_trace(
        5 / 4, "FlashAttention computes q k^T again: five products, the graph counts four"
    ),
    fp32_rate=Figure(0.5, "assumed", "NVIDIA H100 data sheet: TF32 dense is half of bfloat16"),
    kernel_floor=Figure(3e-6, "assumed", "aiconfigurator's constant for a memory-bound op"),
    launch=Figure(7e-6, "assumed", "AutoParallel compute_estimation.py: 7 us for each op of the host"),
    host_wait=Figure(30e-6, "assumed", "a copy to the host, its event, Python's list and the next launch: 30 us"),
    communication_share=Figure(20 / 132, "measured", f"{REPORT}, section 3.2.2: 20 of 132 SMs"),
    overlapped_dispatch=_trace(24.8 / 50, "dispatch kernels 3.88 ms each for 96.2 MB"),
    overlapped_combine=_trace(30.2 / 50, "combine kernels 6.18 ms each for 186.5 MB"),
    imbalance=Figure(
        13.95 / (100.5 * 0.1290), "measured", f"{TABLE_4}: 1F1B 13.95 s in 97 to 104 pairs, each 129.0 ms when balanced"
    ),
    sync=Figure(
        (2.06 - 0.86) / (19.63 - (2.06 - 0.86)),
        "measured",
        f"{TABLE_4}: ranks wait 2.06 of 19.63 s, 0.86 s of it in the simulated schedule",
    ),
    uncertainty=Figure(0.15, "assumed", "published steps on Hopper that took no part: off by up to 7 %, taken twice"),
    of_assumed=OF_ASSUMED,
)


def _held(constant: Figure, what: str) -> Figure:
    return replace(constant, provenance="assumed", source=f"held utilisation of {what}, not time: {constant.source}")


def _family(base: Calibration, name: str) -> Calibration:
    """The utilisations of one family for another that nobody measured."""
    held: dict[str, Any] = {
        key: _held(value, name)
        if isinstance(value, Figure)
        else {kernel_class: _held(constant, name) for kernel_class, constant in value.items()}
        for key, value in vars(base).items()
    }
    worst = Figure(0.30, "assumed", "held utilisations: DeepSeek-V3 on 256 B200 was off by up to 30 %")
    return replace(Calibration(**held), uncertainty=worst, of_assumed=OF_ASSUMED)


def _assumed(value: float, why: str) -> Figure:
    return Figure(value, "assumed", why)


def _cpu() -> Calibration:
    why = "no measurement: the order of magnitude of PyTorch on a CPU"
    classes: dict[KernelClass, Figure] = dict.fromkeys(get_args(KernelClass), _assumed(0.5, why))
    return Calibration(
        forward=classes,
        input_gradient=classes,
        weight_gradient=classes,
        attention_backward_products=_held(HOPPER.attention_backward_products, "H800"),
        fp32_rate=_assumed(1.0, "the cluster's figure is of float32"),
        kernel_floor=_assumed(5e-6, why),
        launch=_assumed(10e-6, why),
        host_wait=_assumed(0.0, "the host is the device"),
        communication_share=_assumed(0.0, "nothing is overlapped"),
        overlapped_dispatch=_assumed(0.5, why),
        overlapped_combine=_assumed(0.5, why),
        imbalance=_held(HOPPER.imbalance, "H800"),
        sync=_held(HOPPER.sync, "H800"),
        uncertainty=_assumed(1.0, "nothing of a CPU is measured: a factor of two"),
        of_assumed=_assumed(1.0, "nothing of a CPU is measured: a factor of two"),
    )


CALIBRATIONS: dict[str, Calibration] = {
    "ada": _family(HOPPER, "Hopper"),
    "ampere": _family(HOPPER, "Hopper"),
    "blackwell": _family(HOPPER, "Hopper"),
    "cdna3": _family(HOPPER, "Hopper"),
    "cdna4": _family(HOPPER, "Hopper"),
    "cpu": _cpu(),
    "hopper": HOPPER,
}
