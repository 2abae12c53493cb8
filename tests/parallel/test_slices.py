"""Ranks that share the width of each expert take the step of one process, and send what the plan prices."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dsc.compiler.driver import build
from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.saved import Step, Storage, trace
from dsc.compiler.passes.shard import MOE, copy_over, share_experts, sharing_experts
from dsc.compiler.planner.layout.layout import TRIVIAL
from dsc.compiler.planner.machine.collectives import Experts, Group, direct_all_to_all
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.parts.shard import Extent, extent
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SIZES = {B.name: 1, S.name: 1024, "width": 512}
Compared = Callable[..., tuple[float, bool]]
SameSteps = Callable[..., None]
EXCHANGED = Path(__file__).with_name("exchanged.py")
CPU = Path(__file__).parents[2] / "spec/clusters/cpu.yaml"
ETP = {"dp": 2, "etp": 2}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, tp 2 x etp 2": ("deepseek", {"tp": 2, "etp": 2}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, etp 2": ("mixtral", ETP),
    "mixtral, etp 4": ("mixtral", {"dp": 4, "etp": 4}),
    "mixtral, cp 2 x etp 2": ("mixtral", {"cp": 2, "etp": 2}),
    "deepseek, dp 4 x ep 2 x etp 2, zero 3": ("deepseek", {"dp": 4, "ep": 2, "etp": 2, "zero": 3}),
    "deepseek, dp 4 x tp 2 x etp 2, zero 2": ("deepseek", {"dp": 4, "tp": 2, "etp": 2, "zero": 2}),
    "deepseek, dp 4 x etp 2, zero 3, full": ("deepseek", {"dp": 4, "etp": 2, "zero": 3, "recompute": ["full"]}),
    "deepseek, pp 2 x dp 2 x etp 2": ("deepseek", {"pp": 2, **ETP}),
    "deepseek, pp 2 x tp 2 x etp 2, zbv, recompute": (
        "deepseek",
        {"pp": 2, "vpp": 2, "tp": 2, "etp": 2, "schedule": "zbv", "recompute": ["experts", "swiglu"]},
    ),
    "deepseek, pp 2 x dp 2 x etp 2, dualpipe-v": (
        "deepseek",
        {"pp": 2, "vpp": 2, **ETP, "schedule": "dualpipe-v"},
    ),
}
FAULTS: dict[str, tuple[str, str, str]] = {
    "a slice counts twice, another never": ("train/experts.py", "own * torch.arange(ETP,", "0 * torch.arange(ETP,"),
    "a rank has the columns of another slice": (
        "train/slices.py",
        "(first_expert, first_row, begin)",
        "(first_expert, first_row, 0)",
    ),
    "up is taken from gate": ("train/slices.py", "half * EXPERT_SIZE", "0 * EXPERT_SIZE"),
    "each slice has a part of the routing weight": (
        "train/experts.py",
        "weights.unsqueeze(-1)",
        "(weights / ETP).unsqueeze(-1)",
    ),
    "the norm leaves out other ranks' slices": (
        "train/gradients.py",
        "dist.all_reduce(squares[1:], group=mesh.ep)",
        "pass",
    ),
    "the norm counts twice what all have": ("train/gradients.py", "all_reduce(squares[1:]", "all_reduce(squares"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_one_process(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*MORE[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, placed_spec: Any, compared: Compared, planted: Any, tmp_path: Path
) -> None:
    difference, equal_biases = compared(placed_spec("deepseek", ETP), tmp_path, "float64", planted(*FAULTS[fault]))
    assert not difference <= 1e-6 or not equal_biases


@pytest.mark.slow
def test_on_nodes_a_token_goes_once_to_each(placed_spec: Any, same_steps: SameSteps) -> None:
    """And there to both ranks that share the width of its experts."""
    machine = {**YAML(typ="safe").load(CPU), "name": "pair", "scale_up_domain": 2}
    spec = placed_spec("deepseek", {"dp": 4, "ep": 2, "etp": 2})
    spec = {**spec, "cluster": {**spec["cluster"], "kind": "./pair.yaml", "machine": machine}}
    sharing = build(ModelSpec.model_validate(spec)).step.sharing
    assert sharing is not None and (sharing.ep, sharing.etp, sharing.nodes) == (2, 2, 2)
    same_steps(spec)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral", "deepseek"])
def test_a_step_sends_the_bytes_of_the_plan(
    model: str, placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    """Rows there and back, forward and backward, whatever the routing; of V3's kind the last position of a sequence
    is left out of multi-token prediction."""
    spec = placed_spec(model, {"dp": 2, "etp": 2})
    package = package_of(spec, tmp_path)
    sent = json.loads(run_in(sys.executable, str(EXCHANGED), str(tmp_path), package, folder=tmp_path).splitlines()[-1])
    machine = hardware(ModelSpec.model_validate(spec).cluster)
    layers, predicting = (4, 0) if model == "mixtral" else (4, 1)

    def planned(tokens: float) -> float:
        """With what stays on the rank, which is as much as goes to the other."""
        one = direct_all_to_all(tokens * 2, 64, 4, Experts(8, 2), Group(2), machine)
        return 2 * (one.network + one.scale_up)

    tokens, sequences = 16 * 32 / 2, 16 / 2
    expected = 4 * (layers * planned(tokens) + predicting * planned(tokens - sequences))
    assert [rank["rows"] for rank in sent] == [expected] * 2


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "tiny"])
@pytest.mark.parametrize("slices", [2, 4])
def test_the_plan_counts_what_a_rank_keeps_and_computes(name: str, slices: int) -> None:
    """Rows are as many times as there are slices, and as much narrower inside the experts."""
    plain = build(load(name).model_copy(update={"cluster": None})).plain
    shared = share_experts(plain.blocks[MOE], copy_over(1, slices))
    planned = trace(sharing_experts(plain), MOE)
    made = trace(Graph({**plain.blocks, shared.key: shared}, plain.constants), shared.key)
    layout = replace(TRIVIAL, etp=slices)
    in_plan = sum((extent(one.type, bytes_of(one)) for one in kept(planned)), Extent()).on(layout)
    assert in_plan == sum(map(bytes_of, kept(made)))
    assert flops(planned) == flops(made)


def kept(steps: tuple[Step, ...]) -> dict[Storage, None]:
    return dict.fromkeys(one for step in steps for one in step.saved)


def bytes_of(storage: Storage) -> int:
    return storage.type.bytes.value(SIZES)


def flops(steps: tuple[Step, ...]) -> int:
    return sum(step.node.flops().value(SIZES) for step in steps)
