"""Experts on the ranks of several nodes: the step of one process, each token sent once to each node that it chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from dsc.compiler.driver import build
from dsc.compiler.passes.shard import EXPERT_PARALLEL
from dsc.compiler.planner.time.traffic import WAITS_OF_HOPS
from dsc.spec.model import ModelSpec

CPU = Path(__file__).parents[2] / "spec/clusters/cpu.yaml"
LAYOUT: tuple[str, dict[str, Any]] = ("deepseek", {"dp": 4, "ep": 4, "zero": 3, "recompute": ["full"]})
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, dp 4 x ep 4": ("mixtral", {"dp": 4, "ep": 4}),
    "deepseek, dp 4 x ep 4": ("deepseek", {"dp": 4, "ep": 4}),
    "deepseek, pp 2 x dp 4 x ep 4, dualpipe-v": (
        "deepseek",
        {"pp": 2, "vpp": 2, "dp": 4, "ep": 4, "schedule": "dualpipe-v"},
    ),
    "deepseek, pp 2 x dp 4 x ep 4, dualpipe-v, recompute": (
        "deepseek",
        {
            **{"pp": 2, "vpp": 2, "dp": 4, "ep": 4, "schedule": "dualpipe-v"},
            "recompute": ["experts", "mla_up_proj", "norms", "swiglu"],
        },
    ),
}
FAULTS = {
    "experts with little weight are left out": ("weights != -1", "weights > 0.6"),
    "what comes back is added to other rows": ("index_add(0, row, h)", "index_add(0, row.flip(0), h)"),
    "rows for a node go to our own": (
        "(copies, of_nodes, to_nodes, self.nodes)",
        "(copies, of_nodes, to_nodes, self.local)",
    ),
}


@pytest.fixture
def on_pairs(placed_spec: Any) -> Callable[..., dict[str, Any]]:
    """A spec on nodes of two ranks each."""
    machine = {**YAML(typ="safe").load(CPU), "name": "pair", "scale_up_domain": 2}

    def spec(model: str, placement: dict[str, Any]) -> dict[str, Any]:
        placed: dict[str, Any] = placed_spec(model, placement)
        return {**placed, "cluster": {**placed["cluster"], "kind": "./pair.yaml", "machine": machine}}

    return spec


def test_a_step_is_that_of_one_process(on_pairs: Any, same_steps: Callable[..., None]) -> None:
    spec = on_pairs(*LAYOUT)
    sharing = build(ModelSpec.model_validate(spec)).step.sharing
    assert sharing is not None and (sharing.ep, sharing.nodes) == (4, 2)
    same_steps(spec)


def test_the_planner_counts_what_the_host_waits_for(placed_spec: Any, on_pairs: Callable[..., dict[str, Any]]) -> None:
    """One wait of a direct exchange is an op of the graph that is timed; these are the others."""

    def waits(spec: dict[str, Any]) -> int:
        block = build(ModelSpec.model_validate(spec)).step.graph.blocks[f"{EXPERT_PARALLEL}.forward"]
        return sum(node.op.waits for node in block.nodes())

    assert waits(on_pairs(*LAYOUT)) - waits(placed_spec(*LAYOUT)) == WAITS_OF_HOPS


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, on_pairs: Any, same_steps: Callable[..., None]) -> None:
    same_steps(on_pairs(*MORE[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault: str, on_pairs: Any, compared: Any, tmp_path: Path) -> None:
    right, wrong = FAULTS[fault]

    def change(name: str, text: str) -> str:
        assert name != "train/experts.py" or right in text
        return text.replace(right, wrong) if name == "train/experts.py" else text

    try:
        difference, _ = compared(on_pairs(*MORE["mixtral, dp 4 x ep 4"]), tmp_path, "float64", change)
    except AssertionError:
        return  # a rank failed
    assert difference > 1e-6


def test_a_token_goes_once_to_each_node(on_pairs: Any, package_of: Any, tmp_path: Path) -> None:
    """And from there once to each of its experts: rows are counted in what the package sends."""
    package = package_of(on_pairs(*LAYOUT), tmp_path)
    source = (tmp_path / package / "train/experts.py").read_text()
    names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, "NUM_EXPERTS": 8}
    first, last = source.index("def weight_by_expert"), source.index("def order_by_expert")
    exec(source[first:last], names)
    experts = torch.rand(1, 50, 8).topk(3, -1).indices
    weights = torch.rand(1, 50, 3)
    chosen, token, sent = names["rows_for"](names["weight_by_expert"](experts, weights, torch.ones(50, 4)), 2)
    nodes = [{expert // 4 for expert in row} for row in experts[0].tolist()]
    assert sent.tolist() == [sum(node in some for some in nodes) for node in (0, 1)]
    assert token.tolist() == [t for node in (0, 1) for t, some in enumerate(nodes) if node in some]
    weights[0, 0, 0] = torch.nan
    spoilt, _, _ = names["rows_for"](names["weight_by_expert"](experts, weights, torch.ones(50, 4)), 8)
    assert len(spoilt) == 150 and spoilt.isnan().sum() == 1, "it is not lost on the way"
    weights[0, 0, 0] = 0.5
    chosen, _, _ = names["rows_for"](names["weight_by_expert"](experts, weights, torch.ones(50, 4)), 2)
    slots, _, counts = names["rows_for"](chosen, 4)
    assert counts.sum() == 150 and slots.shape == (150, 1)
    assert torch.equal(slots.flatten().sort().values, weights.flatten().sort().values)
