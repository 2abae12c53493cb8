"""What every rank holds at its fullest moment in a real run, against the ledger of the plan for the same code.

The run counts the bytes of all memory that tensors have (memory.py), and asks nothing of the planner. The allocator's
reserve, which the ledger adds, is of CUDA's allocator.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import problem_of
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.memory.lines import ALLOCATOR, CODES, COLLECTIVES, CUDA, EXPERT_BUFFERS, GATHERED, WEIGHTS
from dsc.compiler.planner.pipeline.schedule import actions
from dsc.compiler.planner.report.plan import Plan, given_plan
from dsc.spec.model import ModelSpec

MEMORY = Path(__file__).with_name("memory.py")
Measured = Callable[..., list[list[int]]]
BATCH, LENGTH = 16, 128
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2}
ZBV = {**V, "ep": 1, "schedule": "zbv"}
WITHIN = 0.05
AGAIN = ["mla_up_proj", "norms", "swiglu"]
PIPED = [
    (model, {"pp": 2, "dp": 2, "zero": zero, "micro_batch": 4}) for model in ("llama", "deepseek") for zero in (2, 3)
]
SPLIT = [
    ("llama", {**ZBV, "zero": 3}),
    *(("llama", {"pp": 2, "vpp": 2, "dp": 2, "zero": zero, "schedule": "dualpipe-v"}) for zero in (2, 3)),
    ("deepseek", {**ZBV, "zero": 2}),
    *(("deepseek", {**V, "zero": zero, "schedule": "dualpipe-v"}) for zero in (2, 3)),
    ("deepseek", {**V, "dp": 4, "zero": 3, "schedule": "dualpipe-v", "micro_batch": 1}),
]
FLAT = [("llama", {"dp": 2, "zero": 1}), ("llama", {"dp": 2, "zero": 2}), ("deepseek", {"dp": 2, "zero": 3})]
CASES = [
    ("llama", {"dp": 2, "zero": 2}),
    pytest.param("llama", {"dp": 2, "zero": 1}, marks=pytest.mark.slow),
    pytest.param("llama", {"dp": 2, "zero": 3}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 3}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"pp": 2}, marks=pytest.mark.slow),
    pytest.param("llama", {"pp": 2, "dp": 2, "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"pp": 2, "dp": 2, "ep": 2, "zero": 3, "micro_batch": 1}, marks=pytest.mark.slow),
    ("llama", {"tp": 2}),
    pytest.param("deepseek", {"tp": 2}, marks=pytest.mark.slow),
    pytest.param("llama", {"cp": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"cp": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "ep": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "etp": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"pp": 2, "dp": 2, "ep": 2}, marks=pytest.mark.slow),
    *(
        pytest.param("deepseek", {"dp": 2, "recompute": [one]}, marks=pytest.mark.slow)
        for one in ("norms", "swiglu", "mla_up_proj", "experts", "full")
    ),
    ("llama", {"pp": 2, "vpp": 2, "schedule": "zbv"}),
    *(
        pytest.param("deepseek", {"pp": 2, "vpp": 2, "schedule": "zbv", "recompute": some}, marks=pytest.mark.slow)
        for some in (["norms"], ["swiglu"], ["mla_up_proj"], ["experts"], AGAIN, ["full"])
    ),
    pytest.param("deepseek", {"pp": 2, "vpp": 2, "schedule": "zbv"}, marks=pytest.mark.slow),
    pytest.param("llama", {**ZBV, "zero": 2, "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("llama", {**ZBV, "zero": 3, "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {**ZBV, "zero": 3, "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {**V, "zero": 2, "schedule": "zbv", "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {**V, "zero": 1, "schedule": "dualpipe-v", "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {**V, "zero": 2, "schedule": "dualpipe-v", "micro_batch": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {**V, "zero": 3, "schedule": "dualpipe-v", "micro_batch": 1}, marks=pytest.mark.slow),
    *(
        pytest.param(
            "deepseek", {**V, "schedule": "dualpipe-v", "micro_batch": 1, "recompute": some}, marks=pytest.mark.slow
        )
        for some in (["norms"], ["swiglu"], ["mla_up_proj"], ["experts"], AGAIN)
    ),
    pytest.param(
        "deepseek",
        {**V, "zero": 3, "schedule": "dualpipe-v", "micro_batch": 1, "recompute": AGAIN},
        marks=pytest.mark.slow,
    ),
    pytest.param("llama", {"pp": 2, "vpp": 2, "schedule": "interleaved"}, marks=pytest.mark.slow),
    pytest.param("mixtral", {"pp": 2, "vpp": 2, "schedule": "interleaved"}, marks=pytest.mark.slow),
]
PILED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "sends": ("llama", {"pp": 2, "vpp": 2, "schedule": "interleaved"}, "SENDS = 4", "SENDS = 400"),
    "losses": ("llama", {"pp": 2, "dp": 2}, "loss.detach_()", "pass"),
    "receives": (
        "mixtral",
        {"pp": 2, "vpp": 2, "schedule": "interleaved"},
        "let_go(self.args_recv_info[fwd_chunk_id])",
        "pass",
    ),
    "gradients": ("deepseek", {**V, "schedule": "dualpipe-v"}, "let_go(self.grad_recv_info[bwd_chunk_id])", "pass"),
}
"""Layouts, and in each a fault that keeps something of every micro-batch to the end of the step."""
FAULTS: dict[str, tuple[int, tuple[str, str, str]]] = {
    "the pipeline gathers and reduces": (3, ("train/parallel.py", "LayerByLayer(stage)", "stage")),
    "weights stay after forward": (
        3,
        ("train/weights.py", "reshard_after_forward=True", "reshard_after_forward=False"),
    ),
    "weights go after backward": (2, ("train/weights.py", "set_reshard_after_backward(False)", "eval()")),
    "gradients are never reduced": (
        3,
        ("train/weights.py", "set_gradient_divide_factor(1.0)", "set_requires_gradient_sync(False)"),
    ),
}
MORE_THAN_SAID: dict[str, tuple[str, str, str]] = {
    "what is made again, to the end": (
        "train/recompute.py",
        "        self.made = saved | numbered(results)",
        "        self.made = saved | numbered(results)\n        vars(find).setdefault('kept', []).append(self.made)",
    ),
    "what is dropped, from forward": (
        "train/tape.py",
        "        ctx.save_for_backward(x)",
        "        ctx.x = x\n        ctx.save_for_backward(x)",
    ),
}
"""Of pairs beside recompute."""
IN_TURNS: dict[str, tuple[str, str, str]] = {
    "weights stay after forward": ("train/tape.py", "        layer.reshard()\n\n    def", "        pass\n\n    def"),
    "weights go after each segment": ("train/tape.py", "if layer not in before:", "if True:"),
    "gradients are reduced once a step": (
        "train/tape.py",
        "        group.post_backward()",
        "        group.reduce_grads = False",
    ),
}


def specified(placed_spec: Any, model: str, placement: dict[str, Any], batch: int = BATCH) -> dict[str, Any]:
    spec: dict[str, Any] = placed_spec(model, {"micro_batch": 2, **placement})
    return {**spec, "workload": {"sequence_length": LENGTH, "global_batch": batch}}


def specified_in_fp8(fp8_spec: Any, placement: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = fp8_spec({"micro_batch": 2, **placement})
    spec["precision"]["optimizer"] = {"moments": "fp32", "gradients": "fp32"}
    spec["layers"][1]["repeat"] = 3 if "pp" in placement else 1
    return {**spec, "workload": {"sequence_length": LENGTH, "global_batch": BATCH}}


def planned(spec: dict[str, Any]) -> Plan:
    layout = Layout(**{**spec["placement"], "recompute": tuple(spec["placement"]["recompute"])})
    return given_plan(problem_of(ModelSpec.model_validate(spec)), layout)


def ledger(plan: Plan, *without: str) -> list[int]:
    """Bytes of every rank."""
    of_role = [sum(line.bytes for line in role.lines if line.name not in (ALLOCATOR, *without)) for role in plan.roles]
    of_stage = {rank: size for role, size in zip(plan.roles, of_role, strict=True) for rank in role.ranks}
    each = plan.layout.world // plan.layout.pp
    return [of_stage[rank // each] for rank in range(plan.layout.world)]


@pytest.mark.parametrize(("model", "placement"), CASES, ids=str)
def test_every_rank_holds_what_the_ledger_says(
    model: str, placement: dict[str, Any], placed_spec: Any, measured: Measured
) -> None:
    spec = specified(placed_spec, model, placement)
    held, plan = [bytes for bytes, _, _ in measured(spec)], planned(spec)
    differences = [found / said - 1 for found, said in zip(held, ledger(plan), strict=True)]
    print([f"{difference:+.1%}" for difference in differences])
    assert max(map(abs, differences)) <= WITHIN
    shares_left_out = [found / said - 1 for found, said in zip(held, ledger(plan, WEIGHTS, GATHERED), strict=True)]
    assert min(shares_left_out) > WITHIN  # a ledger that lacks what is held of weights is noticed


@pytest.mark.parametrize(
    "placement",
    [
        pytest.param({"dp": 2}, marks=pytest.mark.slow),
        {"dp": 2, "recompute": ["norms", "swiglu"]},
        pytest.param({"dp": 2, "ep": 2, "recompute": ["norms", "swiglu"]}, marks=pytest.mark.slow),
        pytest.param({**ZBV, "dp": 1, "recompute": ["norms", "swiglu"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_so_it_is_beside_products_in_fp8(placement: dict[str, Any], fp8_spec: Any, measured: Measured) -> None:
    """What weights' codes take is told apart (test_fp8.py): they are made inside of ops, where nothing is counted."""
    spec = specified_in_fp8(fp8_spec, placement)
    held, plan = [bytes for bytes, _, _ in measured(spec, dtype="bfloat16")], planned(spec)
    said = ledger(plan, CODES, CUDA, COLLECTIVES, EXPERT_BUFFERS)
    differences = [found / bytes - 1 for found, bytes in zip(held, said, strict=True)]
    print([f"{difference:+.1%}" for difference in differences])
    assert max(map(abs, differences)) <= WITHIN


@pytest.mark.slow
@pytest.mark.parametrize("kept", MORE_THAN_SAID)
def test_what_is_held_longer_is_noticed(kept: str, placed_spec: Any, measured: Measured, planted: Any) -> None:
    placement = {**V, "schedule": "dualpipe-v", "micro_batch": 1, "recompute": AGAIN}
    spec = specified(placed_spec, "deepseek", placement)
    held = [bytes for bytes, _, _ in measured(spec, planted(*MORE_THAN_SAID[kept]))]
    assert max(found / said - 1 for found, said in zip(held, ledger(planned(spec)), strict=True)) > WITHIN


@pytest.mark.slow
def test_masks_of_documents_are_in_the_ledger(placed_spec: Any, measured: Measured) -> None:
    """Of whole rows on each rank that has some of the heads: by so much more than of rows that are not divided."""
    specs = [specified(placed_spec, f"llama{kind}", {"tp": 2, "micro_batch": 4}) for kind in ("", ", documents")]
    joined, apart = ([bytes for bytes, _, _ in measured(spec)] for spec in specs)
    plans = [ledger(planned(spec)) for spec in specs]
    for before, after, said_before, said_after in zip(joined, apart, *plans, strict=True):
        assert after - before == pytest.approx(said_after - said_before, rel=WITHIN)


@pytest.mark.parametrize(
    ("model", "placement"),
    [PILED["sends"][:2], *(pytest.param(*case[:2], marks=pytest.mark.slow) for case in PILED.values())],
    ids=str,
)
def test_a_pipeline_holds_no_more_for_more_micro_batches(
    model: str, placement: dict[str, Any], placed_spec: Any, measured: Measured
) -> None:
    assert not piled(placed_spec, measured, model, placement)


@pytest.mark.slow
@pytest.mark.parametrize("kept", PILED)
def test_what_is_kept_to_the_end_of_a_step_is_noticed(
    kept: str, placed_spec: Any, measured: Measured, planted: Any
) -> None:
    model, placement, text, fault = PILED[kept]
    assert piled(placed_spec, measured, model, placement, planted("train/received.py", text, fault))


def piled(placed_spec: Any, measured: Measured, model: str, placement: dict[str, Any], change: Any = None) -> bool:
    """Whether some rank holds more for each micro-batch: half of a hidden state or more. What is read of a batch, and
    experts that are asked for more, are less."""
    specs = [specified(placed_spec, model, placement, batch) for batch in (2 * BATCH, 4 * BATCH)]
    few, many = ([bytes for bytes, _, _ in measured(spec, change)] for spec in specs)
    rows = 2 * BATCH // placement.get("dp", 1)
    hidden = rows * LENGTH * specs[0]["hidden_size"] * 4
    return max(more - less for less, more in zip(few, many, strict=True)) > hidden / 2


@pytest.mark.parametrize(
    ("model", "placement"),
    [
        *(PIPED[1], SPLIT[0], FLAT[0]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (PIPED[0], *PIPED[2:], *SPLIT[1:], *FLAT[1:])),
    ],
    ids=str,
)
def test_ranks_gather_and_reduce_as_often_as_is_priced(
    model: str, placement: dict[str, Any], placed_spec: Any, measured: Measured
) -> None:
    spec = specified(placed_spec, model, placement)
    assert [tuple(moved) for _, *moved in measured(spec)] == priced(spec)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_gathers_or_reduces_otherwise(
    fault: str, placed_spec: Any, measured: Measured, planted: Any
) -> None:
    zero, change = FAULTS[fault]
    spec = specified(placed_spec, "llama", {**PIPED[0][1], "zero": zero})
    assert [tuple(moved) for _, *moved in measured(spec, planted(*change))] != priced(spec)


@pytest.mark.slow
@pytest.mark.parametrize("fault", IN_TURNS)
def test_so_it_does_where_pairs_take_turns(fault: str, placed_spec: Any, measured: Measured, planted: Any) -> None:
    spec = specified(placed_spec, "deepseek", {**V, "zero": 3, "schedule": "dualpipe-v"})
    assert [tuple(moved) for _, *moved in measured(spec, planted(*IN_TURNS[fault]))] != priced(spec)


def priced(spec: dict[str, Any]) -> list[tuple[int, int]]:
    """Bytes of whole weights that a rank gathers in a step, and of whole gradients that it reduces.

    ZeRO 3 gathers a stage for each of its passes, the others once; ZeRO 1 reduces once, the others after each backward.
    """
    problem, layout = problem_of(ModelSpec.model_validate(spec)), planned(spec).layout
    stages, micro_batches = problem.stages(layout), layout.micro_batches(BATCH)
    moved = []
    for rank, run in enumerate(actions(layout.schedule, layout.pp, layout.vpp, micro_batches)):
        done = Counter((one.kind, one.stage) for action in run for one in action.members)
        gathered = reduced = 0
        for stage in layout.stages(rank):
            held = problem.memory.ranks.elements(stages[stage])
            whole = 4 * (held.dense_on(layout) + held.experts_on(layout) * (layout.edp > 1))
            passes = sum(done[kind, stage] for kind in gathering(layout, first=stage == 0))
            gathered += whole * (passes if layout.zero == 3 else 1)
            reduced += whole * (1 if layout.zero == 1 else micro_batches)
        moved += [(gathered, reduced)] * (layout.world // layout.pp)
    return moved


def gathering(layout: Layout, first: bool) -> tuple[str, ...]:
    """Passes that read weights. What pairs put off reads none; of the first stage a backward of inputs does nothing."""
    if layout.schedule == "dualpipe-v" and layout.copy > 1:
        return ("F", "B", "BW")
    return ("F", "BW", "W") if first else ("F", "B", "BW", "W")


@pytest.fixture
def measured(package_of: Any, run_in: Any, tmp_path: Path) -> Measured:
    """Of a spec, its files changed by a function: each rank's bytes, the most held, gathered and reduced."""

    def measure(
        spec: dict[str, Any], change: Callable[[str, str], str] | None = None, dtype: str = "float32"
    ) -> list[list[int]]:
        package = package_of(spec, tmp_path, change)
        batch = str(spec["workload"]["global_batch"])
        out = run_in(sys.executable, str(MEMORY), str(tmp_path), package, batch, str(LENGTH), dtype, folder=tmp_path)
        found: list[list[int]] = json.loads(out.strip().splitlines()[-1])
        return found

    return measure
