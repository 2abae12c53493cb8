"""Ctrl-C and SIGTERM: train, sft and grpo finish the step, save it and leave; --resume goes on to the bit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rl.commands import ENV, command, grpo, records, run

STEPS = 8
Arguments = Callable[[Path], tuple[object, ...]]


@pytest.fixture(scope="module")
def arguments(start: Path, questions: Path) -> dict[str, Arguments]:
    """Of each command, for a run that is kept in a folder."""

    def kept(folder: Path) -> tuple[object, ...]:
        folder.mkdir(exist_ok=True)
        return "--steps", STEPS, "--save-every", 100, "--checkpoint", folder, "--metrics", folder / "metrics.jsonl"

    text = questions.with_suffix(".txt")
    text.write_text("the quick brown fox jumps over the lazy dog; " * 400)
    sizes = ("--batch-size", 8, "--sequence-length", 32)
    return {
        "train": lambda folder: ("--data", text, *sizes, *kept(folder)),
        "sft": lambda folder: ("--data", questions, "--batch-size", 8, *kept(folder)),
        "grpo": lambda folder: grpo(start, questions, folder, "--steps", STEPS, "--save-every", 100),
    }


@pytest.fixture(scope="module")
def whole(package: Path, arguments: dict[str, Arguments]) -> Callable[[str], Path]:
    """The folder of a command's run that nothing happens to."""
    known: dict[str, Path] = {}

    def folder(module: str) -> Path:
        if module not in known:
            known[module] = package.parent / f"whole-{module}"
            run(package, module, *arguments[module](known[module]))
        return known[module]

    return folder


def checkpoints(module: str, folder: Path) -> Path:
    return folder / "grpo" if module == "grpo" else folder


def signalled(package: Path, module: str, metrics: Path, number: int, *args: object) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal in its third step. A terminal's goes to the whole group."""
    process = subprocess.Popen(
        command(package, module, *args),
        cwd=package.parent, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("train", signal.SIGINT),
        ("sft", signal.SIGTERM),
        ("grpo", signal.SIGINT),
        pytest.param("train", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("sft", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("grpo", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_it_saves_and_goes_on(
    module: str, number: int, package: Path, arguments: dict[str, Arguments], whole: Any, tmp_path: Path
) -> None:
    args, metrics = arguments[module](tmp_path / "run"), tmp_path / "run" / "metrics.jsonl"
    code, said = signalled(package, module, metrics, number, *args)
    assert code == 0 and "Traceback" not in said, said
    last = records(metrics)[-1]["step"]
    kept = checkpoints(module, tmp_path / "run")
    assert 2 <= last < STEPS and (kept / "latest").read_text() == f"step_{last:06d}\n"
    assert not list(kept.glob("*.partial"))
    run(package, module, *args, "--resume")
    assert records(metrics) == records(whole(module) / "metrics.jsonl")
    ends = [
        load_file(next((checkpoints(module, folder) / f"step_{STEPS:06d}").glob("*.safetensors")))
        for folder in (whole(module), tmp_path / "run")
    ]
    assert ends[0].keys() == ends[1].keys() and all(ends[0][name].equal(ends[1][name]) for name in ends[0])
