"""What ranks that share sequences send, compute and keep is what the plan prices."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, in_context
from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.saved import Step, saved_storages, trace
from dsc.compiler.passes.context import PREFIX, attends, context_ranks, share_attention
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.parts.context import rows_of, whole
from dsc.compiler.planner.parts.masks import in_halves, masks
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.sharing import PartSharing
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SENT = Path(__file__).with_name("context.py")
LENGTH = 1024


@pytest.mark.parametrize("model", ["deepseek", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_step_sends_the_bytes_of_the_plan(
    model: str, placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    spec = placed_spec(model, {"cp": 2, "dp": 2, "micro_batch": 2})
    package = package_of(spec, tmp_path)
    sent = json.loads(run_in(sys.executable, str(SENT), str(tmp_path), package, folder=tmp_path).splitlines()[-1])
    expected = planned_bytes(ModelSpec.model_validate(spec))
    assert sent == {"all_gather_into_tensor": expected, "reduce_scatter_tensor": expected}


def planned_bytes(spec: ModelSpec) -> float:
    """Of a step on one rank: what all attention of all its micro-batches gathers."""
    sharing = build(spec).step.sharing
    assert sharing is not None and spec.cluster is not None
    cost = Problem(spec, *in_context(spec), hardware(spec.cluster)).cost
    of_part = PartSharing(sharing.micro_batch, tp=1, cp=sharing.cp, ep=sharing.ep, etp=1, codes=False)
    micro_batches = sharing.batch // (sharing.dp * sharing.micro_batch)
    gathered = sum(cost.communication.context_bytes(cost.ops[part.kind], of_part) for part in cost.parts)
    return micro_batches * gathered


@pytest.mark.parametrize("documents", ["joined", "apart"])
@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-8b", "mistral-7b", "tiny"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_plan_counts_what_the_pass_makes(name: str, ranks: int, documents: str) -> None:
    """The plan marks in the plain graph what is of whole sequences; the pass makes it so."""
    plain = in_context(pinned(name, ranks, documents))[0]
    own = {B.name: 1, S.name: LENGTH // ranks}
    for block in [block for block in plain.blocks.values() if attends(block)]:
        shared = share_attention(block, context_ranks(ranks))
        assert shared.class_name == f"{PREFIX}{block.class_name}"
        graph = Graph({**plain.blocks, shared.key: shared}, plain.constants)
        steps = trace(plain, block.key)
        marked = whole(steps, rows_of(plain))
        kept = dict.fromkeys(one for step in steps for one in step.saved)
        sizes = {B.name: 1, S.name: LENGTH}
        halved = set(masks(steps))
        in_plan = sum(
            in_halves(one.type.bytes.value(sizes), ranks)
            if one in halved
            else one.type.bytes.value(sizes) * (ranks if one in marked.storages else 1)
            for one in kept
            if one.type.shape != window_mask(one.type.shape)
        )
        made = [one.type for one in saved_storages(graph, shared.key) if one.type.shape != window_mask(one.type.shape)]
        assert in_plan == ranks * sum(type.bytes.value(own) for type in made)
        in_time = sum(
            flops(step) * (ranks if index in marked.steps else 1)
            for index, step in enumerate(steps)
            if step.node.op.op_class is not OpClass.ATTENTION
        )
        core = sum(step.node.flops().value(sizes) for step in steps if step.node.op.op_class is OpClass.ATTENTION)
        assert in_time + core == ranks * sum(step.node.flops().value(own) for step in trace(graph, shared.key))


def flops(step: Step) -> int:
    return step.node.flops().value({B.name: 1, S.name: LENGTH})


def window_mask(shape: Any) -> Any:
    """[S, S]: what a window's mask takes, which is no activation of tokens."""
    return (S, S) if len(shape) == 2 else None


def pinned(name: str, ranks: int, documents: str) -> ModelSpec:
    data = load(name).model_dump() | {"training": {"documents": documents}}
    pins = {"cp": ranks, "pp": 1, "tp": 1}
    return ModelSpec.model_validate({**data, "cluster": {"kind": "h100", "nodes": 8}, "placement": pins})
