"""Rewards teach and noise does not: what tests/benchmarks/rewards.py measures, for three seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "rewards.py"


@pytest.mark.slow
def test_fifty_steps_teach_and_random_rewards_do_not(tmp_path: Path) -> None:
    out = tmp_path / "rewards.jsonl"
    subprocess.run([sys.executable, BENCHMARK, "--out", out], check=True, stdout=subprocess.DEVNULL)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == 3
    for one in found:
        assert one["rewarded"] >= one["start"] + 0.15, one
        assert one["control"] <= one["start"], one
