"""Layers that differ: what each is given, what its loop looks like, what follows from the order of layers."""

from dataclasses import replace

import pytest

from dsc.compiler.blocks.layer import build_layer
from dsc.compiler.blocks.model import _context
from dsc.compiler.blocks.schedule import build_attention
from dsc.compiler.driver import Program, build, emit
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.cache_rows import cache_rows
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, OpClass
from dsc.compiler.graph.verify import VerifyError, verify
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.call import LayerLoop
from dsc.compiler.ops.fused.attention import (
    FusedGroupedAttention,
    FusedWindowAttention,
    FusedWindowDocumentAttention,
)
from dsc.compiler.ops.packed import DocumentAttention, DocumentAttentionInWindow
from dsc.compiler.ops.projection import Embedding
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

LAYERS = ("sliding", "full")


def changed(**sections: object) -> ModelSpec:
    return ModelSpec.model_validate({**load("tiny-window").model_dump(), **sections})


def loops(graph: Graph) -> list[LayerLoop]:
    return [node.op for node in graph.blocks["Model.backbone"].nodes() if isinstance(node.op, LayerLoop)]


def test_a_cycle_is_one_loop_and_one_line() -> None:
    """42 layers in turn, and what walks over the graph meets them in order."""
    cycle = [{"attention": name, "ffn": "dense"} for name in LAYERS]
    program = build(changed(layers=[{"repeat": 21, "cycle": cycle}]))
    (loop,) = loops(program.training)
    assert [key for key, _ in loop.runs()] == ["SlidingDenseLayer.forward", "FullDenseLayer.forward"] * 21
    assert [path for _, path in loop.runs()] == [f"layers.{index}" for index in range(42)]
    windows = [row.window for rows in cache_rows(program.training, "Model.forward").values() for row in rows]
    assert windows == [64, 64, None, None] * 21
    text = emit(program)["model.py"]
    line = "[layer() for _ in range(NUM_CYCLES) for layer in (SlidingDenseLayer, FullDenseLayer)]"
    assert text.count(line) == 1 and text.count("for layer in self.layers") == 1


def test_tables_are_as_many_as_ropes_differ() -> None:
    data = load("tiny-window").model_dump()
    assert build(load("tiny-window")).training.blocks["FullDenseLayer.forward"].inputs[1].name == "rope"
    data["attention"]["full"]["rope"]["theta"] = 5e5
    blocks = build(ModelSpec.model_validate(data)).training.blocks
    for name, own in (("SlidingDenseLayer", "sliding_rope"), ("FullDenseLayer", "full_rope")):
        layer = blocks[f"{name}.forward"]
        assert [value.name for value in layer.inputs] == ["x", "full_rope", "sliding_rope"]
        (attention,) = (node for node in layer.nodes() if node.op.attribute() == "self_attn")
        assert [value.name for value in attention.inputs] == ["h", own]


def test_layers_of_their_own_loops_are_given_what_they_want_alone() -> None:
    data = load("tiny-window").model_dump()
    data["attention"]["full"]["rope"]["theta"] = 5e5
    data["layers"] = [{"repeat": 2, "attention": name, "ffn": "dense"} for name in LAYERS]
    blocks = build(ModelSpec.model_validate(data)).training.blocks
    assert [value.name for value in blocks["SlidingDenseLayer.forward"].inputs] == ["x", "sliding_rope"]
    assert [value.name for value in blocks["FullDenseLayer.forward"].inputs] == ["x", "full_rope"]


GPUS = {"kind": "h100", "nodes": 1}
APART = {"documents": "apart"}


def attention_of(program: Program) -> list[type[Op]]:
    """How layers with a window attend in a step, and those without."""
    blocks = program.step.graph.blocks
    found = []
    for name in ("SlidingAttention.forward", "FullAttention.forward"):
        ops = [node.op for node in blocks[name].nodes() if node.op.op_class is OpClass.ATTENTION]
        found += [type(op) for op in ops]
    return found


def test_layers_with_a_window_and_without_share_a_kernel() -> None:
    """Each with its own window and scale; what sees all keys of a row stays with PyTorch's operator."""
    joined = build(changed(cluster=GPUS))
    assert attention_of(joined) == [FusedWindowAttention, CausalAttention]
    apart = build(changed(cluster=GPUS, training=APART))
    assert attention_of(apart) == [FusedWindowDocumentAttention, FusedGroupedAttention]
    text = emit(apart)["train/document_layers.py"]
    assert "windowed_document_attention(q, k, v, starts, SLIDING_WINDOW, SLIDING_ATTENTION_SCALE)" in text
    assert " document_attention(q, k, v, starts, FULL_ATTENTION_SCALE)" in text
    assert not any("kernels/gqa_attention.py" in note for note in (*joined.notes, *apart.notes))


def test_layers_whose_heads_differ_in_width_keep_the_mask_and_a_note_says_so() -> None:
    data = load("tiny-window").model_dump()["attention"]
    wider = {**data, "full": {**data["full"], "head_dim": 64}}
    program = build(changed(attention=wider, cluster=GPUS, training=APART))
    assert attention_of(program) == [DocumentAttentionInWindow, DocumentAttention]
    note = "kernels/gqa_attention.py: its tiles are cut for heads of one width"
    assert sum(text.endswith(note) for text in program.notes) == 1
    assert "kernels/gqa_attention.py" not in emit(program)


def test_layers_in_a_window_beside_latent_attention_keep_the_mask_and_a_note_says_so() -> None:
    data = {**load("tiny-window").model_dump()["attention"], "full": load("tiny").model_dump()["attention"]}
    program = build(changed(attention=data, cluster=GPUS))
    assert attention_of(program) == [WindowedAttention, CausalAttention]
    note = "kernels/gqa_attention.py: it is for grouped queries alone"
    assert sum(text.endswith(note) for text in program.notes) == 1


def test_token_ids_reach_the_feed_forward_that_wants_them() -> None:
    """As hash routing will; here a table of the ids stands for it."""
    context, _ = _context(load("llama-3.1-8b"))
    mlp = BlockBuilder("Lookup")
    mlp.input("x", context.hidden)
    tokens = mlp.input("tokens", context.tokens)
    table = Embedding("table", context.vocab_size, context.hidden_size, context.dtype)
    feed_forward = mlp.finish(mlp.add("out", table, tokens))
    attention = build_attention(context, "gqa")
    layer = build_layer(context, "L", "", attention, feed_forward, (), wanted=context.offered, loss=False)
    assert [value.name for value in layer.inputs] == ["x", "rope", "tokens"]
    called = {node.op.attribute(): [value.name for value in node.inputs] for node in layer.nodes()}
    assert called["mlp"] == ["h", "tokens"] and called["self_attn"] == ["h", "rope"]
    verify(Graph({block.key: block for block in (attention, feed_forward, layer)}, context.constants))


def test_layers_of_one_loop_have_one_signature() -> None:
    graph = build(load("tiny-window")).training

    def with_another(block: Block) -> Block:
        if block.key != "FullDenseLayer.forward":
            return block
        return replace(block, inputs=(*block.inputs, replace(block.inputs[-1], name="another")))

    with pytest.raises(VerifyError, match="whose signatures differ"):
        verify(graph.map(with_another))


def test_only_the_layers_beside_a_loss_return_one() -> None:
    """A dense layer that takes turns with experts returns zero; one that has a loop of its own returns nothing."""
    tiny = load("tiny").model_dump()
    kinds = [{"ffn": "dense"}, {"ffn": "moe"}]
    for layers, results in (([{"repeat": 2, "cycle": kinds}], 2), ([{"repeat": 2, **kind} for kind in kinds], 1)):
        graph = build(ModelSpec.model_validate({**tiny, "layers": layers})).training
        assert len(graph.blocks["DenseLayer.forward"].outputs) == results
        assert len(graph.blocks["MoeLayer.forward"].outputs) == 2
