"""A checkpoint of one layout is read by another: the run goes on as if it had not moved."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

PLACEMENT = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "schedule": "zbv"}


@pytest.fixture(scope="module")
def folder(placed_spec: Any, package_of: Any, tmp_path_factory: Any) -> Path:
    """A package for four ranks, and text to train on."""
    folder: Path = tmp_path_factory.mktemp("resume")
    package_of(placed_spec("deepseek", PLACEMENT), folder)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 400)
    return folder


IN_PARTS = {"cp": {"cp": 2, "ep": 2}, "tp": {"tp": 2, "ep": 2}, "etp": {"dp": 2, "etp": 2}}


@pytest.fixture(scope="module", params=IN_PARTS)
def in_parts(request: Any, placed_spec: Any, package_of: Any, tmp_path_factory: Any) -> Path:
    """A package whose ranks share sequences, heads and widths, or the widths of experts, and text to train on."""
    folder: Path = tmp_path_factory.mktemp(f"in_parts_of_{request.param}")
    package_of(placed_spec("deepseek", IN_PARTS[request.param]), folder)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 400)
    return folder


def trained(run_in: Any, folder: Path, name: str, steps: int, ranks: int, *more: str) -> list[dict[str, float]]:
    """The metrics of a run, in float64."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else ["-m"]
    module = ("small_deepseek.train.train", "--data", "text.txt", "--dtype", "float64", "--steps", str(steps))
    files = ("--metrics", f"{name}.jsonl", "--checkpoint", name, "--eval-every", "2")
    run_in(sys.executable, *launch, *module, *files, *more, folder=folder)
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def losses(records: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(one["step"], one["loss"], one["main"], one["grad_norm"]) for one in records]


def test_a_run_moves_from_four_ranks_to_one_and_back(run_in: Any, folder: Path) -> None:
    unbroken = losses(trained(run_in, folder, "unbroken", 6, 1))
    trained(run_in, folder, "moved", 2, 4)
    trained(run_in, folder, "moved", 4, 1, "--resume")
    moved = losses(trained(run_in, folder, "moved", 6, 4, "--resume"))
    assert [row[0] for row in moved] == [1, 2, 3, 4, 5, 6]
    for got, expected in zip(moved, unbroken, strict=True):
        assert got == pytest.approx(expected, rel=1e-11)


@pytest.mark.slow
def test_a_run_whose_ranks_share_sequences_moves_to_one_process_and_back(run_in: Any, in_parts: Path) -> None:
    unbroken = losses(trained(run_in, in_parts, "unbroken", 6, 1))
    trained(run_in, in_parts, "moved", 2, 2)
    trained(run_in, in_parts, "moved", 4, 1, "--resume")
    moved = losses(trained(run_in, in_parts, "moved", 6, 2, "--resume"))
    assert [row[0] for row in moved] == [1, 2, 3, 4, 5, 6]
    for got, expected in zip(moved, unbroken, strict=True):
        assert got == pytest.approx(expected, rel=1e-11)


def test_the_same_layout_goes_on_bit_by_bit(run_in: Any, folder: Path) -> None:
    unbroken = losses(trained(run_in, folder, "whole", 4, 4))
    trained(run_in, folder, "halves", 2, 4)
    assert losses(trained(run_in, folder, "halves", 4, 4, "--resume")) == unbroken


def test_another_number_of_processes_is_refused_in_one_line(run_in: Any, folder: Path) -> None:
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
    arguments = ("--data", "text.txt", "--steps", "1", "--metrics", "other.jsonl")
    said = run_in(*launch, "small_deepseek.train.train", *arguments, folder=folder, fails=True)
    assert "plan.py shares the model over 4 processes; this run has 2" in said
