"""A pass that deletes a node deletes its line, and what only that line used: its attribute, a constant, a helper."""

import dataclasses
from difflib import ndiff

import pytest

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.graph.graph import Graph
from dsc.spec.loader import load

ATTENTION, ROUTER, MOE, LAYER = (
    f"{name}.forward" for name in ("LatentAttention", "Router", "MixtureOfExperts", "MoeLayer")
)

# block, node, lines of model.py that go
DELETIONS = {
    "a rotation": (ATTENTION, "q_rope", ["q_rope = rotate(q_rope, rope)"]),
    "a norm": (
        ATTENTION,
        "q_latent.2",
        [
            "self.q_a_layernorm = nn.RMSNorm(Q_LORA_RANK, eps=LATENT_NORM_EPS)",
            "q_latent = self.q_a_layernorm(q_latent)",
        ],
    ),
    "the only use of a constant": (
        ROUTER,
        "weights.3",
        [
            "ROUTED_SCALING_FACTOR,",
            "weights = weights * ROUTED_SCALING_FACTOR",
        ],
    ),
    "a product": (MOE, "h.4", ["h = h * slot_weights"]),
    "a residual": (LAYER, "x", ["x = x + h"]),
    "an effect": (
        MOE,
        "record_load",
        ["if self.training:", "self.gate.expert_load.add_(ends.diff(prepend=ends.new_zeros(1)))"],
    ),
}


@pytest.fixture(scope="module")
def tiny() -> Program:
    return build(load("tiny"))


def delete(graph: Graph, key: str, node_id: str) -> Graph:
    """The node's users read its first input instead."""
    block = graph.blocks[key]
    node = block.node(node_id)
    changed = block.without(node_id, dict.fromkeys(node.outputs, node.inputs[0]))
    return dataclasses.replace(graph, blocks={**graph.blocks, key: changed})


@pytest.mark.parametrize("deletion", DELETIONS)
def test_exactly_its_lines_go(tiny: Program, deletion: str) -> None:
    key, node_id, lines = DELETIONS[deletion]
    less = build(tiny.spec, (lambda graph: delete(graph, key, node_id),))
    before, after = emit(tiny)["model.py"], emit(less)["model.py"]
    changes = [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert [change[0] + change[1:].strip() for change in changes] == [f"-{line}" for line in lines]


def test_a_helper_goes_with_its_last_use(tiny: Program) -> None:
    """Both rotations deleted: the function that they called is not printed, the table that the layers take is."""
    less = build(
        tiny.spec,
        (lambda graph: delete(graph, ATTENTION, "q_rope"), lambda graph: delete(graph, ATTENTION, "k_rope.2")),
    )
    before, after = emit(tiny), emit(less)
    assert "def rotate(" in before["model.py"] and "def rotate(" not in after["model.py"]
    assert "rotate(" in before["infer/decode.py"] and "rotate(" not in after["infer/decode.py"]
    assert "def rotary_table(" in after["model.py"]


@pytest.mark.parametrize("node_id", ["kv_latent.2", "k_rope.2"])
def test_what_is_cached_survives_the_deletion_of_the_node_that_made_it(tiny: Program, node_id: str) -> None:
    less = build(tiny.spec, (lambda graph: delete(graph, ATTENTION, node_id),))
    slots = [node.op.kind for node in less.inference.blocks[ATTENTION].nodes() if node.op.kind == "cache_append"]
    assert len(slots) == 2
