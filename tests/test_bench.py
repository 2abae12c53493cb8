"""dsc bench: what it measures and what it proposes. On a CPU kernels run their references; clocks are made up."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dsc.compiler.bench import clock, tune
from dsc.compiler.bench.case import Case
from dsc.compiler.bench.compare import compare, equal
from dsc.compiler.bench.run import Subject, checked, subjects
from dsc.compiler.cli import main
from dsc.compiler.driver import Program, build, emit
from dsc.compiler.kernels import tuning
from dsc.compiler.kernels.target import TARGETS
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SPEC = "cluster: {kind: h200, nodes: 1}\n"


@pytest.fixture(autouse=True)
def _one_run_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times on this machine say nothing."""
    monkeypatch.setattr(clock, "BUDGET", 0.0)


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


MODELS = ("tiny", "tiny-window", "llama-3.1-8b", "deepseek-v2-lite")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, shrunk: Any) -> list[Path]:
    """Of four small models with a cluster."""
    folders = []
    for name in MODELS:
        spec = shrunk(load(name).model_copy(update={"cluster": Machines(kind="h200", nodes=1)}))
        folders.append(tmp_path_factory.mktemp("benched") / name.replace("-", "_").replace(".", "_"))
        for path, text in emit(build(spec)).items():
            (folders[-1] / path).parent.mkdir(parents=True, exist_ok=True)
            (folders[-1] / path).write_text(text)
    return folders


def test_every_attention_of_a_model_is_measured(tmp_path: Path) -> None:
    """What layers with a window attend by, and those without, and the FP8 products of both."""
    data = load("tiny-window").model_dump()
    data["attention"]["full"] |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    data |= {"cluster": {"kind": "h200", "nodes": 1}, "training": {"documents": "apart"}}
    data["precision"]["linear"] = {"kind": "fp8_block"}
    for path, text in emit(build(ModelSpec.model_validate(data))).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    measured = subjects(tmp_path)
    assert sorted(measured["gqa_attention"].sizes) == [(4, 4, 32, None), (8, 2, 32, 64)]
    assert measured["gqa_attention_backward"].sizes == measured["gqa_attention"].sizes
    names = [case.name for case in measured["gqa_attention"].cases(9, "cpu")]
    assert sorted(names) == ["gqa_attention 9 x 4 on 4 x 32", "gqa_attention 9 x 8 on 2 x 32 in 64"]
    heads = {(8 * 32, 256), (2 * 32, 256), (256, 8 * 32), (4 * 32, 256), (256, 4 * 32)}
    assert set(measured["fp8_gemm"].sizes) == heads | {(1024, 256), (256, 1024)}


def test_four_packages_with_a_case_that_raises(
    packages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, torch and triton alone in use; the table names the case, and the others are measured."""

    def raising(subject: Subject, *arguments: Any) -> Any:
        for case in right(subject, *arguments):
            failing = subject.name == "rms_norm" and case.name.startswith("add_rms_norm")
            yield replace(case, run=lambda: 1 // 0) if failing else case

    right = Subject.cases
    monkeypatch.setattr(Subject, "cases", raising)
    output = tmp_path / "results.jsonl"
    arguments = ["--device", "cpu", "--no-compile", "--tokens", "9", "--check", "3", "-o", str(output)]
    done = [CliRunner().invoke(main, ["bench", str(folder), *arguments]) for folder in packages]
    assert [result.exit_code for result in done] == [1] * len(packages)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    failed = [line for line in lines if line["error"]]
    assert {line["error"] for line in failed} == {"ZeroDivisionError: integer division or modulo by zero"}
    assert all(line["case"].startswith("add_rms_norm") for line in failed)
    assert all(line["correct"] for line in lines if not line["error"])
    for folder, result in zip(packages, done, strict=True):
        assert re.search(r"add_rms_norm .*FAILED ZeroDivisionError", result.output), folder
        mine = [line for line in lines if line["package"] == folder.name]
        for line in mine:
            assert re.search(rf"^ *{re.escape(line['case'])} ", result.output, re.M), line["case"]
        right, bad = (sum(line["correct"] is wanted for line in mine) for wanted in (True, False))
        assert f"{right} of {right + bad} cases are right\n  not add_rms_norm" in result.output
    assert {line["phase"] for line in lines} == {"check", "time"}

    again = CliRunner().invoke(main, ["bench", str(packages[0]), *arguments])
    added = [json.loads(line) for line in output.read_text().splitlines()[len(lines) :]]
    assert again.exit_code == 1 and added and all(line["error"] for line in added)  # only what failed runs again


def test_a_wrong_result_is_measured_again(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the last of several calls with one file tells of every case that is not right."""

    def wrong(subject: Subject, *arguments: Any) -> Any:
        for case in right(subject, *arguments):
            yield replace(case, reference=lambda: 2 * case.run()) if case.name.startswith("swiglu 5") else case  # noqa: B023

    right = Subject.cases
    monkeypatch.setattr(Subject, "cases", wrong)
    output = tmp_path / "results.jsonl"
    arguments = [str(package), "--device", "cpu", "--no-compile", "--tokens", "5", "--kernel", "swiglu"]
    counts = []
    for _ in range(2):
        done = CliRunner().invoke(main, ["bench", *arguments, "-o", str(output)])
        assert done.exit_code == 1 and "WRONG" in done.output and "\n  not swiglu 5" in done.output
        counts.append(len(output.read_text().splitlines()))
    assert counts[1] - counts[0] == output.read_text().count('"correct": false') / 2 > 0


def test_it_runs_with_torch_and_triton_alone(package: Path, tmp_path: Path) -> None:
    """As on a machine that has nothing else: no other library of dsc is imported."""
    program = f"""
import sys
for name in ("pydantic", "ruamel", "ruamel.yaml", "jinja2", "click", "rich", "ruff"):
    sys.modules[name] = None
from dsc.compiler.bench.__main__ import main
sys.exit(main([{str(package)!r}, "--device", "cpu", "--no-compile", "--tokens", "5", "--kernel", "swiglu"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ceilings: copy" in done.stdout and "swiglu" in done.stdout and "WRONG" not in done.stdout


def test_a_shard_has_fewer_experts(package: Path) -> None:
    assert subjects(package, experts=4)["grouped_gemm"].sizes[:2] == (4, 4)
    assert subjects(package, experts=2)["expert_dispatch"].sizes[:2] == (2, 2)
    assert subjects(package, experts=2)["router"].sizes == subjects(package)["router"].sizes


def test_comparisons_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 7)
    y = x.clone()
    y[31] *= 1.5
    whole = compare(y, x)
    monkeypatch.setattr("dsc.compiler.bench.compare.PIECE", 21)
    found = compare((y, x), (x, x))
    assert found.row == whole.row == 31 and found.worst == pytest.approx(0.5)
    assert found.difference == pytest.approx(whole.difference) and 0 < whole.difference < 0.02
    y[8, 3] = float("nan")
    assert compare(y, x).difference == float("inf") and compare(y, x).row == 8
    assert equal(y, y.clone()) and not equal(x, y) and compare(x[:2], x).difference == float("inf")


def test_results_that_differ_from_run_to_run_are_wrong() -> None:
    steps = iter(range(9))
    case = Case("steps", lambda: torch.ones(3) * (1 + 1e-6 * next(steps)), lambda: torch.ones(3), 12)
    result = checked("steps", case)
    assert result.difference is not None and result.difference < case.bound and not result.correct


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
