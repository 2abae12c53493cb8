"""Longer runs: the bias flattens a skewed load, and bfloat16 follows float32, on two ranks as on one."""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

CURVES = Path(__file__).with_name("curves.py")
WINDOW = 20  # steps: of so small a model with experts, single ones differ by up to 7 %
Curve = list[list[float]]


@pytest.fixture
def curve(placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(main loss, overload) of every step of the deepseek model on dp 2 x ep 2, or on one process."""

    def run(dtype: str, steps: int, *ranks: str, rate: float = 0.01, skew: float = 0.0) -> Curve:
        spec = placed_spec("deepseek", {"dp": 2, "ep": 2})
        moe = spec["ffn"]["moe"]
        balance = {**moe["router"]["balance"], "bias_update_rate": rate}
        moe = {**moe, "router": {**moe["router"], "balance": balance}}
        spec = {**spec, "ffn": {**spec["ffn"], "moe": moe}, "workload": {"sequence_length": 32, "global_batch": 8}}
        package = package_of(spec, tmp_path)
        monkeypatch.setenv("SKEW", str(skew))
        command = (sys.executable, str(CURVES), str(tmp_path), package, dtype, str(steps), *ranks)
        found: Curve = json.loads(run_in(*command, folder=tmp_path).splitlines()[-1])
        return found

    return run


def test_the_bias_flattens_a_skewed_router(curve: Any) -> None:
    """Two of eight experts are chosen for every token at first: 3 above the mean, the most there can be."""
    steps = 60
    moved = [overload for _, overload in curve("float32", steps, skew=0.1)]
    left = [overload for _, overload in curve("float32", steps, skew=0.1, rate=1e-12)]
    assert moved[0] == left[0] > 2.5
    assert mean(moved[-WINDOW:]) < 1.25
    assert mean(left[-WINDOW:]) > 2.0


@pytest.mark.slow
def test_bfloat16_follows_float32_on_one_process_and_on_two(curve: Any) -> None:
    steps = 200
    wide, narrow, shared = (
        [loss for loss, _ in curve(*run)]
        for run in (("float32", steps), ("bfloat16", steps), ("bfloat16", steps, "ranks"))
    )
    assert wide[-1] < wide[0] / 3, "there is something to learn"
    for first in range(0, steps, WINDOW):
        expected = mean(wide[first : first + WINDOW])
        assert abs(mean(narrow[first : first + WINDOW]) / expected - 1) < 0.01
        assert abs(mean(shared[first : first + WINDOW]) / expected - 1) < 0.01
