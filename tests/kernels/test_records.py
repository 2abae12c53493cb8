"""The records of kernels against the graph: sizes, refusals, and what the compiler says of them."""

import pytest
from kernels.lab import dims, spec_with

from dsc.compiler.bench.sizes import SIZES
from dsc.compiler.driver import build
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.latent_cache import MLA_DECODE, cache_rows
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.ops.fused.fp8 import Fp8Linears

H100 = {"cluster.kind": "h100", "cluster.nodes": 1, "precision.linear.kind": "fp8_block"}


def fp8_weights(graph: Graph) -> set[tuple[int, int]]:
    """[N, K] of the weights that are multiplied in FP8."""
    return {
        (linear.out_features.substitute(sizes).value(), linear.in_features.substitute(sizes).value())
        for root in graph.methods(graph.root)
        for _, node, sizes in graph.walk(root.key)
        if isinstance(node.op, Fp8Linears)
        for linear in node.op.linears
    }


@pytest.mark.parametrize("zoo", ["deepseek-v3", "deepseek-v2-lite", "llama-3.1-8b", "qwen3-30b-a3b", "mixtral-8x7b"])
def test_fp8_products_are_measured_at_the_weights_of_the_graph(zoo: str) -> None:
    assert fp8_weights(build(spec_with(zoo, H100)).training) == set(SIZES["fp8_gemm"](dims(zoo)))


def test_no_fp8_rows_where_there_is_no_fp8() -> None:
    """The compiler keeps bfloat16 rows there, and says so."""
    keys = {"precision.kv_cache": "fp8", "attention.kv_lora_rank": 128}
    for kind, without in (("a100", True), ("mi300x", True), ("h800", False)):
        program = build(spec_with("tiny", {**keys, "cluster": {"kind": kind, "nodes": 1}}))
        assert without == any(note.startswith("precision.kv_cache: rows are kept in bf16") for note in program.notes)
        assert cache_rows(program.spec, program.target) == ("plain" if without else "fp8")


@pytest.mark.parametrize(("key", "size"), [("kv_lora_rank", 48), ("kv_lora_rank", 384), ("qk_rope_head_dim", 8)])
def test_dims_that_decode_does_not_take(key: str, size: int) -> None:
    """They are refused while compiling; the compiler then leaves attention expanded, and says so."""
    spec = spec_with("tiny", {f"attention.{key}": size, "cluster": {"kind": "h100", "nodes": 1}})
    reason = MLA_DECODE.refusal(spec, TARGETS["sm_90"])
    assert reason is not None and "powers of two" in reason
    (note,) = (note for note in build(spec).notes if note.startswith("infer: expanded attention"))
    assert reason in note
