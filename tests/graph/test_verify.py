"""verify() finds what a faulty pass would do to a graph. Each fault is planted in a graph that was fine."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dsc.compiler.driver import build
from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import OPS, Types, record, tensor
from dsc.compiler.graph.types import DType, ValueType
from dsc.compiler.graph.verify import VerifyError, verify
from dsc.compiler.ops.elementwise import Add
from dsc.spec.loader import load

KEY = "LatentAttention.forward"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(load("tiny")).training


def change(graph: Graph, node_id: str, edit: Callable[[Node], Node], key: str = KEY) -> Graph:
    block = graph.blocks[key]
    nodes = [edit(node) if node.id == node_id else node for node in block.nodes()]
    return replace(graph, blocks={**graph.blocks, key: block.with_nodes(nodes)})


def as_bf16(type: ValueType) -> ValueType:
    return replace(tensor(type), dtype=DType.BF16)


@record
class Impostor(Add):
    """An op that claims the kind of another."""


@record
class Unknown(Add):
    kind = "unknown"


def test_a_built_graph_passes(graph: Graph) -> None:
    assert verify(graph) is graph


def test_an_output_that_the_op_does_not_infer(graph: Graph) -> None:
    def edit(node: Node) -> Node:
        (value,) = node.outputs
        return replace(node, outputs=(replace(value, type=as_bf16(value.type)),))

    with pytest.raises(VerifyError, match=r"LatentAttention\.forward: q: its outputs are .*BF16"):
        verify(change(graph, "q", edit))


def test_an_edge_with_another_type_at_its_other_end(graph: Graph) -> None:
    def edit(node: Node) -> Node:
        (value,) = node.inputs
        return replace(node, inputs=(replace(value, type=as_bf16(value.type)),), outputs=narrowed(node))

    def narrowed(node: Node) -> tuple[Value, ...]:
        return tuple(replace(value, type=as_bf16(value.type)) for value in node.outputs)

    with pytest.raises(VerifyError, match="q reads q_latent as"):
        verify(change(graph, "q", edit))


def test_an_unregistered_op(graph: Graph) -> None:
    with pytest.raises(VerifyError, match="unknown is not a registered op kind"):
        verify(change(graph, "x", lambda node: replace(node, op=Unknown()), "DenseLayer.forward"))


def test_an_op_that_claims_the_kind_of_another(graph: Graph) -> None:
    assert OPS[Impostor.kind] is Add
    with pytest.raises(VerifyError, match="add is not a registered op kind"):
        verify(change(graph, "x", lambda node: replace(node, op=Impostor()), "DenseLayer.forward"))


def test_a_variable_bound_again_while_its_old_value_is_read(graph: Graph) -> None:
    """q_latent is normed in place; a reader of the raw one would silently be given the normed one."""
    (raw,) = graph.blocks[KEY].node("q_latent").outputs
    with pytest.raises(VerifyError, match="q reads q_latent of q_latent, which holds"):
        verify(change(graph, "q", lambda node: replace(node, inputs=(raw,))))


def test_a_result_bound_again(graph: Graph) -> None:
    block = graph.blocks[KEY]
    (stale,) = block.node("out").outputs
    changed = block.with_nodes(block.nodes(), outputs=(stale,))
    with pytest.raises(VerifyError, match="its result reads out of out"):
        verify(replace(graph, blocks={**graph.blocks, KEY: changed}))


def test_a_value_that_nobody_makes(graph: Graph) -> None:
    ghost = replace(graph.blocks[KEY].node("q").inputs[0], producer="", index=9)
    with pytest.raises(VerifyError, match="reads q_latent of an input"):
        verify(change(graph, "q", lambda node: replace(node, inputs=(ghost,))))


def test_the_result_of_a_node_that_is_gone(graph: Graph) -> None:
    block = graph.blocks[KEY]
    changed = block.with_nodes(node for node in block.nodes() if node.id != "kv")
    with pytest.raises(VerifyError, match="kv_latent reads kv of kv, which holds None by then"):
        verify(replace(graph, blocks={**graph.blocks, KEY: changed}))


def test_a_call_of_a_missing_block(graph: Graph) -> None:
    blocks = {key: block for key, block in graph.blocks.items() if key != KEY}
    with pytest.raises(VerifyError, match=r"calls LatentAttention\.forward, which is no block"):
        verify(replace(graph, blocks=blocks))


def test_a_constructor_argument_that_is_not_given(graph: Graph) -> None:
    def forget(node: Node) -> Node:
        return replace(node, op=replace(node.op, arguments=()))

    with pytest.raises(VerifyError, match=r"FeedForward\.forward wants \['width'\]"):
        verify(change(graph, "h.4", forget, "DenseLayer.forward"))


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_operands(graph: Graph, count: int) -> None:
    with pytest.raises(VerifyError, match=f"linear reads .*, got {count} values"):
        verify(change(graph, "q", lambda node: replace(node, inputs=node.inputs * count)))


def test_what_is_cached_must_exist(graph: Graph) -> None:
    """Otherwise decoding would quietly attend to the new tokens only."""
    block = graph.blocks[KEY]
    kept, *rest = block.cached
    nobody = replace(kept, value=replace(kept.value, producer="nobody"))
    changed = replace(block, cached=(nobody, *rest))
    with pytest.raises(VerifyError, match="cache"):
        verify(replace(graph, blocks={**graph.blocks, KEY: changed}))


def test_two_nodes_of_one_name(graph: Graph) -> None:
    """Who reads the name would not know which is meant."""
    block: Block = graph.blocks[KEY]
    with pytest.raises(AssertionError, match="two nodes of one name"):
        block.with_nodes((*block.nodes(), block.node("q")))


def test_a_cycle(graph: Graph) -> None:
    block: Block = graph.blocks[KEY]
    first, *rest = block.nodes()
    with pytest.raises(AssertionError, match="a cycle through"):
        block.with_nodes((replace(first, inputs=rest[-1].outputs), *rest))


def test_nodes_stand_behind_what_they_read_and_otherwise_as_they_were_given(graph: Graph) -> None:
    block: Block = graph.blocks[KEY]
    nodes = block.nodes()
    assert block.with_nodes(nodes).nodes() == nodes
    last_first = block.with_nodes((nodes[-1], *nodes[:-1]))
    assert last_first.nodes() == nodes
    backwards = [node.id for node in block.with_nodes(reversed(nodes)).nodes()]
    assert backwards != [node.id for node in nodes]
    for place, name in enumerate(backwards):
        producers = {value.producer for value in block.node(name).inputs} - {INPUT}
        assert producers <= set(backwards[:place])


def infer_nothing(self: Add, inputs: Types) -> Types:
    return ()


def test_an_op_that_infers_too_few_results(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Add, "infer", infer_nothing)
    with pytest.raises(VerifyError, match="its op infers"):
        verify(graph)


def test_a_block_that_a_pass_left_is_checked_for_its_calls_alone(graph: Graph) -> None:
    assert verify(graph, graph) is graph
    less = replace(graph, blocks={key: block for key, block in graph.blocks.items() if key != KEY})
    with pytest.raises(VerifyError, match=r"calls LatentAttention\.forward, which is no block"):
        verify(less, graph)
    bad = change(graph, "q", lambda node: replace(node, inputs=()))
    with pytest.raises(VerifyError, match="linear reads"):
        verify(bad, graph)
    assert verify(bad, bad) is bad
