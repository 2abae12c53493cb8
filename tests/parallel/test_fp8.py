"""Experts in FP8 whose rows come from other ranks are those of one process.

A rank's micro-batch has as many tokens as one process's, because gradients of dense weights share scales along tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit, problem_of
from dsc.compiler.planner.parts.parts import parts_of
from dsc.compiler.planner.report.plan import make_plan
from dsc.compiler.planner.time.ops import op_costs
from dsc.spec.model import ModelSpec

EP = {"dp": 2, "ep": 2, "micro_batch": 4}  # as many tokens as share a scale in one process
CLOSE = 1e-9
"""In float64, codes of float32 scales aside: nothing is near enough to the middle of two codes to fall to the other."""
FAULTS: dict[str, tuple[str, str, str]] = {
    "rows are taken for those of another expert": (
        "train/experts.py",
        ".repeat(ranks)",
        ".flip(0).repeat(ranks)",
    ),
    "a scale is that of the block beside it": (
        "kernels/fp8_grouped_gemm.py",
        "dequantize(w, w_scale), ends)",
        "dequantize(w, w_scale.roll(1, 0) if len(ends) < 8 else w_scale), ends)",
    ),
}


@pytest.fixture
def fp8_spec(placed_spec: Any) -> Callable[..., dict[str, Any]]:
    """The deepseek model with two blocks of FP8 along most dims, for GPUs that have it; a CPU runs the references."""

    def spec(placement: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = placed_spec("deepseek", placement)
        attention = {**found["attention"], "q_lora_rank": 128, "kv_lora_rank": 64}
        moe = {**found["ffn"]["moe"], "moe_intermediate_size": 128}
        ffn = {"dense": {"intermediate_size": 128}, "moe": moe}
        precision = {"linear": {"kind": "fp8_block"}}
        ranks = found["cluster"]["nodes"]
        layers = [{"repeat": 1, "ffn": kind} for kind in ffn]
        changed = {"hidden_size": 128, "attention": attention, "ffn": ffn, "precision": precision, "layers": layers}
        return {**found, **changed, "cluster": {"kind": "h100", "gpus": ranks}}

    return spec


@pytest.mark.parametrize("layout", [EP, pytest.param({**EP, "ep": 1}, marks=pytest.mark.slow)], ids=str)
def test_as_in_one_process(
    layout: dict[str, Any], fp8_spec: Callable[..., Any], compared: Callable[..., Any], tmp_path: Path
) -> None:
    difference, equal_biases = compared(fp8_spec(layout), tmp_path, "float64")
    assert difference < CLOSE and equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, fp8_spec: Callable[..., Any], compared: Callable[..., Any], tmp_path: Path
) -> None:
    file, right, wrong = FAULTS[fault]
    assert right in emit(build(ModelSpec.model_validate(fp8_spec(EP))))[file]
    difference, _ = compared(
        fp8_spec(EP), tmp_path, "float64", lambda name, text: text.replace(right, wrong) if name == file else text
    )
    assert difference > 1e-6


def test_experts_of_ranks_are_in_fp8_in_the_package_and_in_its_plan(fp8_spec: Callable[..., Any]) -> None:
    """A received row is read where it arrived: nothing copies it into the order of experts."""
    spec = ModelSpec.model_validate(fp8_spec(EP))
    text = emit(build(spec))["train/experts.py"]
    assert "fp8_routed_experts(h, slot_weights, order, position, ends, self.gate_up_proj, self.down_proj)" in text
    assert "grouped_mm" not in text and "index_select" not in text.partition("fp8_routed_experts(")[2]
    problem = problem_of(spec)
    plan = make_plan(problem)
    assert plan.layout.ep == 2 and plan.not_emitted == ()
    ops = {op.name: op for op in op_costs(parts_of(problem.shared))["MoeLayer.forward"]}
    experts = next(op for name, op in ops.items() if name.endswith("gate_up_proj"))
    assert (experts.kernel_class, experts.weight_class) == ("fp8_grouped", "gemm")
