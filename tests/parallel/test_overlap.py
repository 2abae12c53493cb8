"""Pairs of a forward and a backward really run in turns, each all-to-all beside the other side's compute.

No clock is asked: a package's wire notes when an all-to-all is started and waited for, and its turns who computes.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit, problem_of
from dsc.compiler.planner.report.plan import make_plan
from dsc.spec.model import ModelSpec

ORDER = Path(__file__).with_name("pairs.py")
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "schedule": "dualpipe-v"}
SETS: list[list[str]] = [[], ["experts", "mla_up_proj", "norms", "swiglu"]]
FAULTS = {
    "weight gradients are lost": ("train/tape.py", "            add()\n", "            pass\n"),
    "half of what is kept across a cut": ("train/tape.py", "((edge, box.pop()) for", "((edge, box.pop() / 2) for"),
    "a part of the loss is trained instead": (
        "train/overlap.py",
        "device=losses.device)[0]",
        "device=losses.device)[1]",
    ),
}
AGAIN = {
    "gradients of weights from what was dropped, and not from what was made again": (
        "train/tape.py",
        "        ctx.save_for_backward(x)",
        "        ctx.save_for_backward(torch.zeros_like(x))",
    ),
    "a weight's gradient goes to what autograd saved of it": (
        "train/tape.py",
        "ctx.saved_tensors, ctx.weight",
        "ctx.saved_tensors, ctx.weight.detach()",
    ),
    "the weights of experts that run again have no gradient": (
        "train/experts.py",
        "grouped_product(h, self.down_proj,",
        "grouped_product(h, self.down_proj.detach(),",
    ),
}
Package = Callable[..., str]
Compared = Callable[..., tuple[float, bool]]


@pytest.fixture(scope="module", params=SETS, ids=str)
def recompute(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def pairs(
    recompute: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    placed_spec: Any,
    package_of: Package,
    run_in: Any,
) -> Any:
    """What every rank noted of a step."""
    spec = placed_spec("deepseek", {**V, "recompute": recompute})
    return noted(spec, tmp_path_factory.mktemp("pairs"), package_of, run_in)


def noted(spec: dict[str, Any], folder: Path, package_of: Package, run_in: Any, change: Any = None) -> Any:
    package = package_of(spec, folder, change)
    return json.loads(run_in(sys.executable, str(ORDER), str(folder), package, folder=folder).splitlines()[-1])


def test_every_all_to_all_of_a_pair_is_on_its_way_while_the_other_side_computes(pairs: Any) -> None:
    found = 0
    for rank in pairs:
        for events in rank["pairs"]:
            sides = [event for event in events if event in ("B", "F")]
            assert sides[:4] == ["B", "F", "B", "F"], "backward first, then in turns"
            found += _check_hidden(events)
    assert found > 0


def _check_hidden(events: list[str]) -> int:
    """No side waits in the turn in which it started, as long as the other one has turns left; how many are hidden."""
    hidden = 0
    for position, event in enumerate(events):
        if event.startswith("start"):
            rest = events[position:]
            between = rest[: rest.index(event.replace("start", "wait"))]
            turns = [one for one in between if one in ("B", "F")]
            assert turns, "a turn ends between start and wait"
            hidden += len(set(turns)) == 2
    return hidden


@pytest.mark.parametrize("exchange", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_a_pair_takes_the_longer_of_compute_and_exchanges_and_not_their_sum(exchange: float, pairs: Any) -> None:
    """What was noted, on a clock: a turn computes for 1, an all-to-all takes `exchange`, one at a time on the wire.

    A stage has one mixture here, or two: beside a side's first turn and its last there is nothing on its way.
    """
    for rank in pairs:
        for events in rank["pairs"]:
            compute = sum(event in ("B", "F") for event in events)
            on_its_way = exchange * sum(event.startswith("start") for event in events)
            longer, shorter = max(compute, on_its_way), min(compute, on_its_way)
            assert longer <= _seconds(events, exchange) <= longer + shorter / 2


def _seconds(events: list[str], exchange: float) -> float:
    """Of a turn: what it waits for arrives, it computes, and what it made is sent when the wire is free."""
    now, free = 0.0, 0.0
    arrival: dict[str, float] = {}
    computed = False
    for event in events:
        kind, _, number = event.partition(" ")
        if kind in ("B", "F"):
            now, computed = now + (not computed and bool(arrival)), False
        elif kind == "wait":
            now = max(now, arrival[number])
        elif kind == "start":
            now, computed = now + 1, True
            arrival[number] = free = max(now, free) + exchange
    return now + (not computed)


def test_weight_gradients_run_while_that_of_dx_is_on_its_way(pairs: Any) -> None:
    for rank in pairs:
        for events in rank["pairs"]:
            weights = [events[index - 1] for index, event in enumerate(events) if event == "weights"]
            assert weights
            assert all(before.startswith("start") or before == "segment" for before in weights)


def test_the_schedule_is_torchs(pairs: Any) -> None:
    for rank in pairs:
        assert rank["order"] == rank["torch"]
    assert any("OVERLAP_F_B" in action for rank in pairs for action in rank["order"])


def test_nothing_of_it_is_emitted_elsewhere(placed_spec: Any) -> None:
    for pins in ({"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v"}, {**V, "schedule": "zbv"}):
        assert build(ModelSpec.model_validate(placed_spec("deepseek", pins))).step.turns is None


def test_what_waits_for_its_w_is_what_the_ledger_says(recompute: list[str], pairs: Any, placed_spec: Any) -> None:
    """Of all ranks that run a micro-batch together: what experts are sent differs from rank to rank, its sum does not.

    Numbers have eight bytes here and four in the plan, which also has a count for each expert: some in ten thousand.
    """
    waited: Counter[tuple[int, int]] = Counter()
    for rank in pairs:
        waited.update({(stage, micro_batch): size for stage, micro_batch, size in rank["waited"]})
    problem = problem_of(ModelSpec.model_validate(placed_spec("deepseek", {**V, "recompute": recompute})))
    layout = make_plan(problem).layout
    said = {
        stage: problem.memory.stages.of(kinds, layout).until_weights
        for content in problem.memory.ranks.of_ranks(layout, problem.batch, problem.stages(layout))
        for stage, kinds in zip(layout.stages(content.ranks[0]), content.kinds, strict=True)
    }
    assert {stage for stage, _ in waited} == {0, 1, 2, 3}
    for (stage, _), size in waited.items():
        assert size == pytest.approx(2 * layout.dp * said[stage], rel=1e-3)


def test_what_is_dropped_is_made_again_once(recompute: list[str], pairs: Any) -> None:
    assert all(set(rank["times"]) == ({1} if recompute else set()) for rank in pairs)


@pytest.mark.slow
def test_what_is_made_twice_is_noticed(
    placed_spec: Any, package_of: Package, run_in: Any, planted: Any, tmp_path: Path
) -> None:
    fault = planted("train/recompute.py", "if not self.made:", "if True:")
    spec = placed_spec("deepseek", {**V, "recompute": ["norms"]})
    assert all(max(rank["times"]) > 1 for rank in noted(spec, tmp_path, package_of, run_in, fault))


@pytest.mark.parametrize("recompute", [[], *SETS[1:], *([one] for one in SETS[1])], ids=str)
def test_what_is_made_again_between_cuts_is_no_hindrance(recompute: list[str], placed_spec: Any) -> None:
    program = build(ModelSpec.model_validate(placed_spec("deepseek", {**V, "recompute": recompute})))
    assert program.step.turns is not None
    assert not any("without overlap" in note for note in program.notes)


def test_the_kernel_of_products_that_are_put_off_is_emitted(placed_spec: Any) -> None:
    """On GPUs one process has kernels of whole experts instead."""
    spec = placed_spec("deepseek", {**V, "recompute": ["experts"]})
    precision = {"parameters": "bf16", "kv_cache": "bf16"}
    files = emit(
        build(ModelSpec.model_validate({**spec, "cluster": {"kind": "h100", "gpus": 4}, "precision": precision}))
    )
    assert "kernels.grouped_mm import" in files["train/tape.py"] and "kernels/grouped_mm.py" in files


def test_layers_that_run_again_are_not_cut_and_that_is_said(placed_spec: Any) -> None:
    program = build(ModelSpec.model_validate(placed_spec("deepseek", {**V, "recompute": ["full"]})))
    assert program.step.turns is None
    assert any(note.startswith("train: DualPipeV without overlap") for note in program.notes)


def test_layers_in_a_cycle_are_not_cut_and_that_is_said(placed_spec: Any) -> None:
    spec = placed_spec("deepseek", V)
    spec["layers"] = [{"repeat": 4, "cycle": [{"ffn": "dense"}, {"ffn": "moe"}]}]
    program = build(ModelSpec.model_validate(spec))
    assert program.step.turns is None
    assert any("cuts layers in a cycle" in note for note in program.notes)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, placed_spec: Any, compared: Compared, tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != file or text in source, f"{file} has no {text!r}"
        return source.replace(text, planted) if name == file else source

    difference, equal_biases = compared(placed_spec("deepseek", V), tmp_path, "float64", plant)
    assert difference > 1e-6 or not equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("fault", AGAIN)
def test_so_it_is_beside_recompute(
    fault: str, placed_spec: Any, compared: Compared, planted: Any, tmp_path: Path
) -> None:
    spec = placed_spec("deepseek", {**V, "recompute": SETS[1]})
    difference, equal_biases = compared(spec, tmp_path, "float64", planted(*AGAIN[fault]))
    assert not difference <= 1e-6 or not equal_biases


def test_products_with_a_bias_are_whole(placed_spec: Any, same_steps: Callable[..., None]) -> None:
    spec = placed_spec("mixtral", V)
    same_steps({**spec, "attention": {**spec["attention"], "qkv_bias": True}})
