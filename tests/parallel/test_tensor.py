"""Ranks that share heads, widths and the vocabulary take the step of one process, and send what the plan prices."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, in_tensor, read_in_rows
from dsc.compiler.graph.dim import Axis, B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.saved import Step, Storage, trace
from dsc.compiler.ops.tensor import CrossEntropyOfShards, GatherSequence, SumOwnPart
from dsc.compiler.passes.tensor import PREFIX, divided, share_sublayer, tensor_ranks
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.parts.tensor import whole_on_each
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.sharing import PartSharing
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Compared = Callable[..., tuple[float, bool]]
SameSteps = Callable[..., None]
LENGTH, WIDTH = 1024, {"width": 512}
SENT = Path(__file__).with_name("context.py")
EP = {"tp": 2, "ep": 2}
V = {"pp": 2, "vpp": 2, **EP}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, ep 2": ("deepseek", EP),
    "llama, dp 2, tied": ("llama", {"tp": 2, "dp": 2}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek": ("deepseek", {"tp": 2}),
    "deepseek, four ranks": ("deepseek", {"tp": 4}),
    "deepseek, dp 2 x ep 4": ("deepseek", {"tp": 2, "dp": 2, "ep": 4}),
    "deepseek, dp 2, zero 3, recompute": (
        "deepseek",
        {"tp": 2, "dp": 2, "zero": 3, "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "deepseek, ep 2, full": ("deepseek", {**EP, "recompute": ["full"]}),
    "deepseek, pp 2": ("deepseek", {"pp": 2, "tp": 2}),
    "deepseek, pp 2 x ep 2, dualpipe-v": ("deepseek", {**V, "schedule": "dualpipe-v"}),
    "deepseek, pp 2 x ep 2, zbv, recompute": ("deepseek", {**V, "schedule": "zbv", "recompute": ["norms", "swiglu"]}),
    "llama": ("llama", {"tp": 2}),
    "llama, pp 2, tied": ("llama", {"pp": 2, "tp": 2}),
    "llama, zero 2, micro-batches of 2": ("llama", {"tp": 2, "dp": 2, "zero": 2, "micro_batch": 2}),
    "mixtral, ep 2": ("mixtral", EP),
    "mixtral, dp 2": ("mixtral", {"tp": 2, "dp": 2}),
    "window": ("window", {"tp": 2}),
    "window, pp 2 x dp 2, zbv": ("window", {"pp": 2, "vpp": 2, "dp": 2, "tp": 2, "schedule": "zbv"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_one_process(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*MORE[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_as_close_as_its_sums(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]), "float32", within=1e-4)


@pytest.mark.slow
def test_so_it_is_with_a_z_loss(placed_spec: Any, compared: Compared, tmp_path: Path) -> None:
    spec = {**placed_spec("llama", {"tp": 2}), "z_loss": 0.01}
    assert compared(spec, tmp_path, "float64")[0] <= 1e-13


@pytest.mark.parametrize("model", ["deepseek", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_step_sends_the_bytes_of_the_plan(
    model: str, placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    """Every gather is a reduce-scatter in backward, and the reverse; the largest logits of tokens are reduced alone."""
    spec = placed_spec(model, {"tp": 2, "dp": 2, "micro_batch": 2})
    package = package_of(spec, tmp_path)
    sent = json.loads(run_in(sys.executable, str(SENT), str(tmp_path), package, folder=tmp_path).splitlines()[-1])
    planned, largest = planned_bytes(ModelSpec.model_validate(spec))
    expected = planned - largest
    assert sent == {"all_gather_into_tensor": expected, "reduce_scatter_tensor": expected}


def planned_bytes(spec: ModelSpec) -> tuple[float, float]:
    """Of a step on one rank: what its collectives of forward bring, and what of that are largest logits."""
    sharing = build(spec).step.sharing
    assert sharing is not None and spec.cluster is not None
    cost = Problem(spec, *in_tensor(spec), hardware(spec.cluster)).cost
    of_part = PartSharing(sharing.micro_batch, tp=sharing.tp, cp=1, ep=sharing.ep, etp=1, codes=False)
    micro_batches = sharing.batch // (sharing.dp * sharing.micro_batch)
    each = [sum(cost.communication.tensor_bytes(part.kind, of_part)) for part in cost.parts]
    losses = sum(isinstance(step.node.op, CrossEntropyOfShards) for part in cost.parts for step in part.steps)
    tokens = sharing.micro_batch * spec.workload.sequence_length
    return micro_batches * sum(each), micro_batches * losses * tokens * 4


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "llama-3.1-8b", "mistral-7b", "tiny"])
def test_the_plan_reads_the_shares_that_are_emitted(name: str) -> None:
    """The same ops in the same order, with as many ranks as there are."""
    cluster, pins = {"kind": "h100", "nodes": 1}, {"pp": 1, "tp": 2, "cp": 1, "ep": 1, "recompute": []}
    spec = ModelSpec.model_validate({**load(name).model_dump(), "cluster": cluster, "placement": pins})
    emitted, (timed, _) = build(spec).step.graph, in_tensor(spec)
    shares = [
        block for block in emitted.blocks.values() if block.key.startswith(PREFIX) and block.inputs[0].name == "x"
    ]
    found = [block for block in shares if block.key.removeprefix(PREFIX) in timed.blocks and sends(block)]
    assert found
    for block in found:
        planned = timed.blocks[block.key.removeprefix(PREFIX)]
        assert [node.op.kind for node in planned.nodes()] == [node.op.kind for node in block.nodes()]


@pytest.mark.parametrize("documents", ["joined", "apart"])
@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "llama-3.1-8b", "mistral-7b", "tiny"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_plan_counts_what_a_rank_keeps_and_computes(name: str, ranks: int, documents: str) -> None:
    """The plan reads shares of one rank and divides by ranks all but what it marks; the pass makes those of several."""
    data = load(name).model_dump() | {"cluster": None, "training": {"documents": documents}}
    spec = ModelSpec.model_validate(data)
    timed, _ = in_tensor(spec)
    plain = read_in_rows(spec, build(spec).plain)
    of_all, own = {B.name: 1, S.name: LENGTH}, {B.name: 1, S.name: LENGTH // ranks}
    sublayers = [block for block in plain.blocks.values() if divided(block, tensor_ranks(ranks))]
    assert len(sublayers) >= 2
    for block in sublayers:
        shared = share_sublayer(block, tensor_ranks(ranks))
        graph = Graph({**plain.blocks, shared.key: shared}, plain.constants)
        steps, made = trace(timed, block.key), trace(graph, shared.key)
        marked = whole_on_each(steps)
        in_plan = sum(bytes_of(one, of_all | WIDTH) * (ranks if one in marked else 1) for one in kept(steps))
        assert in_plan == ranks * sum(bytes_of(one, own | WIDTH) for one in kept(made))
        flops = [
            sum(step.node.flops().value(sizes | WIDTH) for step in some)
            for some, sizes in ((steps, of_all), (made, own))
        ]
        assert flops[0] == ranks * flops[1]


def kept(steps: tuple[Step, ...]) -> dict[Storage, None]:
    """What is saved of sequences: tables of positions and a window's mask have no batch."""
    found = dict.fromkeys(one for step in steps for one in step.saved)
    return {one: None for one in found if Axis.BATCH in one.type.axes}


def bytes_of(storage: Storage, sizes: dict[str, int]) -> int:
    return storage.type.bytes.value(sizes)


def sends(block: Any) -> bool:
    return any(isinstance(node.op, GatherSequence | SumOwnPart) for node in block.nodes())


def test_latent_attention_sends_latents(placed_spec: Any) -> None:
    """V3's 2,112 numbers of a token to other ranks, where its hidden state has 7,168."""
    graph = build(load("deepseek-v3").model_copy(update={"cluster": None})).plain
    (attention,) = (block for block in graph.blocks.values() if block.class_name == "LatentAttention")
    assert divided(attention, tensor_ranks(2)).keys() == {"NUM_HEADS"}
    timed = in_tensor(load("deepseek-v3"))[0].blocks["LatentAttention.forward"]
    (gather,) = (node for node in timed.nodes() if isinstance(node.op, GatherSequence))
    assert sum(tensor(value.type).numel.value({"B": 1, "S": 1}) for value in gather.inputs) == 1536 + 512 + 64
