"""dsc bench: what it measures and what it proposes. On a CPU kernels run their references; clocks are made up."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dsc.compiler.bench import tune
from dsc.compiler.bench.case import Case
from dsc.compiler.bench.run import Subject, subjects
from dsc.compiler.cli import main
from dsc.compiler.driver import Program, build, emit
from dsc.compiler.kernels import tuning
from dsc.compiler.kernels.target import TARGETS
from dsc.spec.cluster import Machines
from dsc.spec.loader import load

SPEC = "cluster: {kind: h200, nodes: 1}\n"


@pytest.fixture(scope="module")
def program() -> Program:
    return build(load("tiny").model_copy(update={"cluster": Machines(kind="h200", nodes=1)}))


@pytest.fixture(scope="module")
def package(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "tiny"
    for name, text in emit(program).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_fastest_tile_of_the_grid_is_proposed(program: Program, package: Path) -> None:
    tried = list(tune.trials("swiglu", program, package, 16, "cpu", lambda run: 1.0))
    tiles = [one.tile for one in tried if one.launch == "forward"]
    assert tiles[0] == {"ROWS": 4, "COLUMNS": 512, "num_warps": 4}  # the table's own comes first
    assert len(tiles) == 8 and all(one.times for one in tried)
    assert tune.proposals(tried) == ()  # nothing is faster than what is as fast

    times = iter([3.0, 2.0, 5.0, 1.0, 4.0])
    faster = [tune.Trial(one.kernel, one.launch, one.tile, one.dims, {"forward 16": next(times)}) for one in tried[:5]]
    (proposal,) = tune.proposals(faster)
    assert (proposal.tile, proposal.before, proposal.after) == (tried[3].tile, 3.0, 1.0)
    (row,) = tomllib.loads(proposal.row("sm_90", "measured NVIDIA H200 2026-11-24"))["forward"]
    assert row == {"arch": ["sm_90"], "tile": tried[3].tile, "origin": "measured NVIDIA H200 2026-11-24"}


def test_a_tile_that_is_tried_is_what_the_file_says(program: Program) -> None:
    with tuning.trial("swiglu", "forward", {"ROWS": 1, "COLUMNS": 512, "num_warps": 16}):
        tried = tune._print("swiglu", program)
    before = tune._print("swiglu", program)
    assert re.search(r'= {"ROWS": 1, "COLUMNS": 512, "num_warps": 16}  # tried', tried) and "tried" not in before


def test_what_does_not_fit_and_what_is_wrong_is_not_timed(
    program: Program, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"BLOCK_M": 1024, "BLOCK_N": 1024, "num_warps": 8, "num_stages": 4}
    times, note = tune._try("mla_attention", "forward", large, program, package, 16, "cpu", lambda run: 1.0)
    assert times == {} and "takes" in note and "B of shared memory" in note

    def wrong(subject: Subject, *arguments: Any) -> Any:
        for case in right(subject, *arguments):
            yield Case(case.name, case.run, lambda: 2 * case.run(), case.bytes)  # noqa: B023

    right = Subject.cases
    monkeypatch.setattr(Subject, "cases", wrong)
    known = {"ROWS": 4, "COLUMNS": 512, "num_warps": 4}
    times, note = tune._try("swiglu", "forward", known, program, package, 16, "cpu", lambda run: 1.0)
    assert times == {} and "is wrong by" in note


@pytest.mark.parametrize("kernel", [path.stem for path in sorted((Path(tuning.__file__).parent / "tiles").glob("*"))])
def test_grids_name_numbers_of_their_launches(kernel: str) -> None:
    for launch, numbers in tuning.grid(kernel).items():
        rows = tuning.table(kernel)[launch]
        assert all(number in row["tile"] for row in rows for number in numbers)
        assert {arch for row in rows for arch in row["arch"]} <= TARGETS.keys()


def test_the_command_measures_every_kernel_that_has_cases(package: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    arguments = ["bench", str(package), "--device", "cpu", "--no-compile", "--tokens", "16", "-o", str(output)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {line["kernel"] for line in lines} == subjects(package).keys()
    for line in lines:
        assert line["correct"] and line["time"] > 0 and line["reference_time"] > 0 and line["torch"] and line["date"]


def test_the_command_says_what_it_wants(package: Path, tmp_path: Path) -> None:
    nothing = CliRunner().invoke(main, ["bench", str(tmp_path)])
    assert nothing.exit_code == 2 and "no package with kernels" in nothing.output
    unknown = CliRunner().invoke(main, ["bench", str(package), "--device", "cpu", "--kernel", "sort"])
    assert unknown.exit_code == 2 and "no such kernel" in unknown.output and "swiglu" in unknown.output
    gpu = CliRunner().invoke(main, ["bench", str(package)])
    assert gpu.exit_code == 2 and "no GPU" in gpu.output
    plain = CliRunner().invoke(main, ["bench", str(package), "--device", "cpu", "--tune", "tiny"])
    assert plain.exit_code == 2 and "names no cluster" in plain.output


def test_the_command_tunes(package: Path, tmp_path: Path) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text((Path(str(load.__globals__["__file__"])).parent / "models" / "tiny.yaml").read_text() + SPEC)
    arguments = [
        "bench",
        str(package),
        "--device",
        "cpu",
        "--tokens",
        "16",
        "--kernel",
        "swiglu",
        "--tune",
        str(spec),
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "swiglu.forward" in done.output
