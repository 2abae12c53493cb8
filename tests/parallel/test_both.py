"""Ranks that share each sequence in two ways, as contexts and between heads, take the step of one process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, in_both
from dsc.compiler.graph.dim import Axis, B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.saved import Step, Storage, trace
from dsc.compiler.ops.tensor import CrossEntropyOfShards
from dsc.compiler.passes.context import attends, context_ranks, share_attention
from dsc.compiler.passes.tensor import CONTEXT, share_sublayer, tensor_ranks
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.parts.context import rows_of, whole
from dsc.compiler.planner.parts.tensor import whole_on_each
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.sharing import PartSharing
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Compared = Callable[..., tuple[float, bool]]
SameSteps = Callable[..., None]
LENGTH = 1024
SENT = Path(__file__).with_name("context.py")
BOTH = {"cp": 2, "tp": 2}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {"deepseek, ep 2": ("deepseek", {**BOTH, "ep": 2})}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", BOTH),
    "mixtral, ep 2 x etp 2": ("mixtral", {**BOTH, "ep": 2, "etp": 2}),
    "window, zero 3": ("window", {**BOTH, "zero": 3}),
    "llama, dp 2, zero 2": ("llama", {**BOTH, "dp": 2, "zero": 2}),
    "deepseek, pp 2": ("deepseek", {**BOTH, "pp": 2}),
    "deepseek, pp 2 x ep 2, dualpipe-v": (
        "deepseek",
        {**BOTH, "pp": 2, "vpp": 2, "ep": 2, "schedule": "dualpipe-v"},
    ),
    "deepseek, full": ("deepseek", {**BOTH, "recompute": ["full"]}),
    "deepseek, recompute": ("deepseek", {**BOTH, "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]}),
}
FAULTS: dict[str, tuple[str, str, str]] = {
    "the balance loss is of a context's part": ("train/tensor.py", "Router: (sequence,)", "Router: (group,)"),
    "contexts are those of other heads": (
        "train/tensor.py",
        "LatentAttention: (group, context)",
        "LatentAttention: (group, group)",
    ),
    "the end is another context's": ("train/tensor.py", "context.rank() == 0 and ", "context.rank() == 1 and "),
    "gradients of heads are of one context": (
        "train/mesh.py",
        'ranks._unflatten(0, (DP * CP, TP), ("dp_cp", "tp"))["dp_cp"]',
        'sequences["dp"]',
    ),
    "parts of a context are another's": (
        "train/stages.py",
        "rope = own_part(rope, self.rank)",
        "rope = own_part(rope, 0)",
    ),
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
    try:
        difference, equal_biases = compared(placed_spec("deepseek", BOTH), tmp_path, "float64", planted(*FAULTS[fault]))
    except AssertionError:
        return  # a rank failed
    assert not difference <= 1e-6 or not equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deepseek", "llama"])
def test_a_step_sends_the_bytes_of_the_plan(
    model: str, placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    """Every gather is a reduce-scatter in backward, and the reverse; the largest logits of tokens are reduced alone."""
    spec = placed_spec(model, {**BOTH, "dp": 2, "micro_batch": 2})
    package = package_of(spec, tmp_path)
    sent = json.loads(run_in(sys.executable, str(SENT), str(tmp_path), package, folder=tmp_path).splitlines()[-1])
    expected = planned_bytes(ModelSpec.model_validate(spec))
    assert sent == {"all_gather_into_tensor": expected, "reduce_scatter_tensor": expected}


def planned_bytes(spec: ModelSpec) -> float:
    """Of a step on one rank: what its collectives of forward bring, less the largest logits."""
    sharing = build(spec).step.sharing
    assert sharing is not None and spec.cluster is not None
    cost = Problem(spec, *in_both(spec), hardware(spec.cluster)).cost
    of_part = PartSharing(sharing.micro_batch, tp=sharing.tp, cp=sharing.cp, ep=1, etp=1, codes=False)
    micro_batches = sharing.batch // (sharing.dp * sharing.micro_batch)
    of_tensor = sum(sum(cost.communication.tensor_bytes(part.kind, of_part)) for part in cost.parts)
    of_context = sum(cost.communication.context_bytes(cost.ops[part.kind], of_part) for part in cost.parts)
    losses = sum(isinstance(step.node.op, CrossEntropyOfShards) for part in cost.parts for step in part.steps)
    largest = losses * sharing.micro_batch * spec.workload.sequence_length / sharing.cp * 4
    return micro_batches * (of_tensor + of_context - largest)


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-8b", "mistral-7b"])
@pytest.mark.parametrize(("contexts", "ranks"), [(2, 2), (4, 2)])
def test_the_plan_counts_what_a_rank_keeps_and_computes(name: str, contexts: int, ranks: int) -> None:
    spec = load(name).model_copy(update={"cluster": None})
    (timed, _), plain = in_both(spec), build(spec).plain
    of_all, own = {B.name: 1, S.name: LENGTH}, {B.name: 1, S.name: LENGTH // (contexts * ranks)}
    for block in filter(attends, plain.blocks.values()):
        shared = share_attention(block, context_ranks(contexts), CONTEXT)
        shared = share_sublayer(shared, tensor_ranks(ranks))
        steps = trace(timed, block.key)
        made = trace(Graph({**plain.blocks, shared.key: shared}, plain.constants), shared.key)
        of_context, of_tensor = whole(steps, rows_of(timed)), whole_on_each(steps)
        in_plan = sum(
            one.type.bytes.value(of_all)
            * (contexts if one in of_context.storages else 1)
            * (ranks if one in of_tensor else 1)
            for one in kept(steps)
        )
        assert in_plan == contexts * ranks * sum(one.type.bytes.value(own) for one in kept(made))
        counted = sum(
            step.node.flops().value(of_all) * (contexts if index in of_context.steps else 1)
            for index, step in enumerate(steps)
        )
        assert counted == contexts * ranks * sum(step.node.flops().value(own) for step in made)


def kept(steps: tuple[Step, ...]) -> dict[Storage, None]:
    """What is saved of sequences: tables of positions and a window's mask have no batch."""
    found = dict.fromkeys(one for step in steps for one in step.saved)
    return {one: None for one in found if Axis.BATCH in one.type.axes}
