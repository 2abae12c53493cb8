"""The graph for generation: nothing of training is left in it, nothing idle, and it costs what the model costs."""

import re

import pytest

from dsc.compiler.driver import Program, build
from dsc.compiler.graph.dim import B, C, Dim
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.attention import CachedAttention, CausalAttention
from dsc.spec.loader import load

TRAINING_ONLY = re.compile("loss|load|count|share|probability|cross_entropy|init_weights|update")
MODELS = ("tiny", "deepseek-v2-lite", "deepseek-v3", "llama-3.1-8b", "qwen3-30b-a3b", "minicpm3-4b")
ROOT = "Model.forward"


@pytest.fixture(scope="module", params=MODELS)
def program(request: pytest.FixtureRequest) -> Program:
    """In plain PyTorch; with kernels, what is absorbed costs and keeps otherwise."""
    return build(load(request.param).model_copy(update={"cluster": None}))


def kinds(graph: Graph) -> set[str]:
    return {node.op.kind for block in graph.blocks.values() for node in block.nodes()}


def test_training_has_what_inference_must_not(program: Program) -> None:
    assert any(TRAINING_ONLY.search(kind) for kind in kinds(program.training))
    assert not any(TRAINING_ONLY.search(kind) for kind in kinds(program.inference))


def test_nothing_is_computed_that_nobody_reads(program: Program) -> None:
    for block in program.inference.blocks.values():
        read = {value for node in block.nodes() for value in node.inputs} | set(block.outputs)
        for node in block.nodes():
            assert read & set(node.outputs), f"{block.key}: {node.id}"


def test_no_block_returns_what_no_caller_reads(program: Program) -> None:
    called: dict[str, set[int]] = {ROOT: {0}}
    for block in program.inference.blocks.values():
        read = {value for node in block.nodes() for value in node.inputs} | set(block.outputs)
        for node in block.nodes():
            if isinstance(node.op, Call):
                used = {index for index, value in enumerate(node.outputs) if value in read}
                for callee in node.op.callees():
                    called.setdefault(callee, set()).update(used)
    assert {key: set(range(len(block.outputs))) for key, block in program.inference.blocks.items()} == called


def attention_flops(program: Program) -> Dim:
    """Of one layer, causal, as the training graph counts them."""
    (node,) = (n for b in program.training.blocks.values() for n in b.nodes() if isinstance(n.op, CausalAttention))
    return node.flops()


def test_one_token_costs_what_it_costs_in_training(program: Program) -> None:
    """But for attention: a causal square counts half, decoding reads the whole cache."""
    one = {"B": 2, "S": 1, "C": 1}
    decode, train = program.inference.flops(ROOT).value(one), program.training.flops(ROOT).value(one)
    assert decode - train == program.spec.num_layers * attention_flops(program).value(one)


def test_a_longer_cache_costs_its_rows(program: Program) -> None:
    """Linear in the cached tokens, and for keys that are cached as they are used, attention alone."""
    flops = [program.inference.flops(ROOT).value({"B": 1, "S": 1, "C": length}) for length in (1, 2, 101)]
    assert flops[2] - flops[0] == 100 * (flops[1] - flops[0]) > 0
    if program.spec.attention.kind == "gqa":
        nodes = [n for b in program.inference.blocks.values() for n in b.nodes() if isinstance(n.op, CachedAttention)]
        assert flops[1] - flops[0] == program.spec.num_layers * nodes[0].flops().value({"B": 1, "S": 1, "C": 1})


def test_the_head_runs_on_the_last_position_only(program: Program) -> None:
    logits = tensor(program.inference.blocks[ROOT].outputs[0].type)
    assert logits.shape[0].same(B) and logits.shape[1].same(1)


def test_the_cache_holds_what_the_builder_kept(program: Program) -> None:
    (attention,) = (block for block in program.training.blocks.values() if block.cached)
    appended = [n for n in program.inference.blocks[attention.key].nodes() if n.op.kind == "cache_append"]
    assert {node.inputs[0] for node in appended} == {kept.value for kept in attention.cached}
    assert all(tensor(node.outputs[0].type).shape[1].same(C) for node in appended)


def test_a_model_without_losses_keeps_its_blocks() -> None:
    """Blocks that neither lose a result nor see the cache are the very same, so decoding calls the module."""
    program = build(load("llama-3.1-8b"))
    key = "FeedForward.forward"
    assert program.inference.blocks[key] == program.training.blocks[key]
