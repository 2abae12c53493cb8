"""Pairs of a forward and a backward really run in turns, each all-to-all beside the other side's compute.

No clock is asked: a package's wire notes when an all-to-all is started and waited for, and its turns who computes.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build
from dsc.spec.model import ModelSpec

ORDER = Path(__file__).with_name("pairs.py")
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "schedule": "dualpipe-v"}
FAULTS = {
    "weight gradients are lost": ("train/tape.py", "            add()\n", "            pass\n"),
    "half of what is kept across a cut": ("train/tape.py", "((edge, box.pop()) for", "((edge, box.pop() / 2) for"),
    "a part of the loss is trained instead": (
        "train/overlap.py",
        "device=losses.device)[0]",
        "device=losses.device)[1]",
    ),
}
Package = Callable[..., str]
Compared = Callable[..., tuple[float, bool]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, placed_spec: Any, package_of: Package, run_in: Any) -> Any:
    """What every rank noted of a step."""
    folder = tmp_path_factory.mktemp("pairs")
    package = package_of(placed_spec("deepseek", V), folder)
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


def test_what_is_made_again_is_not_cut_and_that_is_said(placed_spec: Any) -> None:
    program = build(ModelSpec.model_validate(placed_spec("deepseek", {**V, "recompute": ["norms"]})))
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
