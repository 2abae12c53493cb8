"""The graph that several ranks serve: its collectives are ops, and nothing else of the model changes."""

from collections import Counter

import pytest

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.exchange import SendRows, TradeCounts
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.paged import AttendGroups
from dsc.spec.loader import load
from dsc.spec.serving import Serving

MODELS = ("tiny", "mixtral-8x7b", "deepseek-v3")
COLLECTIVES = {SendRows: 2, TradeCounts: 1}
MIXTURE = "MixtureOfExperts.forward"


def served(name: str, ranks: int) -> Program:
    """In plain PyTorch."""
    return build(load(name).model_copy(update={"cluster": None, "serving": Serving(ep=ranks)}))


@pytest.mark.parametrize("name", MODELS)
def test_rows_go_out_and_come_back_in_every_mixture_and_nowhere_else(name: str) -> None:
    graph = served(name, 4).serving
    found = {key: Counter(type(node.op) for node in block.nodes()) for key, block in graph.blocks.items()}
    for key, ops in found.items():
        assert {kind: ops[kind] for kind in COLLECTIVES} == (
            COLLECTIVES if key == MIXTURE else dict.fromkeys(COLLECTIVES, 0)
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_holds_its_share_of_the_experts_and_all_else(name: str) -> None:
    whole, part = (held(served(name, ranks).serving) for ranks in (1, 4))
    assert whole.keys() == part.keys()
    assert {key: whole[key] // part[key] for key in whole} == dict.fromkeys(whole, 4)


def held(graph: Graph) -> dict[str, int]:
    """Numbers in the stacks of experts."""
    ops = [node.op for node in graph.blocks[MIXTURE].nodes() if isinstance(node.op, GroupedLinear)]
    return {op.name: op.parameters()[0].type.numel.value() for op in ops}


@pytest.mark.parametrize("name", MODELS)
def test_other_blocks_are_those_of_one_rank(name: str) -> None:
    """But for attention, of a batch that may be empty."""
    alone, several = (served(name, ranks).serving for ranks in (1, 4))
    for key in alone.blocks.keys() - {MIXTURE}:
        ours, theirs = (
            [node.op.kind for node in graph.blocks[key].nodes() if not isinstance(node.op, AttendGroups)]
            for graph in (alone, several)
        )
        assert ours == theirs
        assert [tensor(v.type).shape_text() for v in alone.blocks[key].outputs] == [
            tensor(v.type).shape_text() for v in several.blocks[key].outputs
        ]


def test_one_rank_that_is_asked_for_is_the_package_of_none() -> None:
    """`serving: {ep: 1}` changes the lock only, which has the spec."""
    spec = load("tiny")
    plain, asked = (
        emit(build(spec.model_copy(update={"serving": serving})), command="x") for serving in (None, Serving(ep=1))
    )
    assert [name for name in plain.keys() | asked.keys() if plain.get(name) != asked.get(name)] == ["dsc.lock.json"]
