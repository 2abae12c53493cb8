"""Ranks share steps that grow as one process runs them, and go on in the middle."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

RAMP = {"start": 8, "increment": 4, "tokens": 1000}  # 500 tokens each: two steps of 8 sequences, two of 12
SIZES = [8, 8, 12, 12, 16, 16]
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp 2": {"dp": 2},
    "pp 2": {"pp": 2},
    "pp 2 x dp 2 x ep 2, zbv": {**V, "schedule": "zbv"},
    "pp 2 x dp 2 x ep 2, dualpipe-v": {**V, "schedule": "dualpipe-v"},
}


def trained(run_in: Any, folder: Path, name: str, steps: int, ranks: int, *more: str) -> list[list[float]]:
    """Steps, batches, losses and norms of a run, in float64."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else ["-m"]
    module = ("small_weighed.train.train", "--data", "text.txt", "--dtype", "float64", "--steps", str(steps))
    files = ("--metrics", f"{name}.jsonl", "--checkpoint", name, "--eval-every", "3")
    run_in(sys.executable, *launch, *module, *files, *more, folder=folder)
    records = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
    names = ("step", "batch_size", "tokens", "loss", "mtp", "grad_norm", "mtp_loss_weight", "eval_loss")
    return [[record.get(name, 0.0) for name in names] for record in records]


@pytest.fixture(params=["dp 2", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LAYOUTS)[1:])])
def layout(request: Any, placed_spec: Any, package_of: Any, tmp_path: Path) -> int:
    """How many ranks the package has that lies in the test's folder beside some text."""
    placement = LAYOUTS[request.param]
    package_of({**placed_spec("deepseek, weighed", placement), "training": {"batch_ramp": RAMP}}, tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 400)
    return int(placement.get("pp", 1)) * int(placement.get("dp", 1))


def test_ranks_share_a_ramp(layout: int, run_in: Any, tmp_path: Path) -> None:
    single, shared = (trained(run_in, tmp_path, f"on {ranks}", 6, ranks) for ranks in (1, layout))
    assert [row[1] for row in shared] == SIZES
    for got, expected in zip(shared, single, strict=True):
        assert got == pytest.approx(expected, rel=1e-11)


@pytest.mark.slow
def test_ranks_go_on_in_the_middle_of_a_ramp(layout: int, run_in: Any, tmp_path: Path) -> None:
    whole = trained(run_in, tmp_path, "whole", 6, layout)
    trained(run_in, tmp_path, "halves", 3, layout)
    assert trained(run_in, tmp_path, "halves", 6, layout, "--resume") == whole
