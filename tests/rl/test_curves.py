"""Curves beside the metrics, of all three trainers. What stands in for both libraries keeps what it is given."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TRAINERS = ("train", "sft", "grpo")
Start = Callable[..., list[dict[str, float]]]


@pytest.fixture(scope="module")
def begun(learning: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, questions, and a run of one step to begin at."""
    folder = tmp_path_factory.mktemp("curves")
    (folder / "text.txt").write_text("one and one is two. " * 200)
    (folder / "questions.jsonl").write_text('{"prompt": "one and one", "answer": "two"}\n' * 4)
    run(learning, "train", folder, "--checkpoint", folder / "start")
    return folder


def run(learning: Any, name: str, folder: Path, *more: object) -> list[dict[str, float]]:
    """Two steps of a trainer, by its command line; what its metrics have."""
    module, metrics = learning(group_size=2)(f"train.{name}"), folder / f"{name}.jsonl"
    flags: dict[str, tuple[object, ...]] = {
        "train": ("--data", folder / "text.txt", "--batch-size", 2, "--sequence-length", 16),
        "sft": ("--data", folder / "questions.jsonl", "--batch-size", 2),
        "grpo": ("--prompts", folder / "questions.jsonl", "--reward", "exact_match", "--questions", 2, "--judges", 1),
    }
    with pytest.MonkeyPatch.context() as patch:
        given = (*flags[name], "--steps", 2, "--metrics", metrics, *more)
        patch.setattr(sys, "argv", [name, *map(str, given)])
        begin = module.train if name == "train" else module.learn
        begin(module.parse_arguments())
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.fixture
def start(learning: Any, begun: Path, tmp_path: Path) -> Start:
    """Trainers in a folder of the test's own."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)

    def started(name: str, *more: object) -> list[dict[str, float]]:
        checkpoint = ("--checkpoint", tmp_path / "start") if name == "grpo" else ()
        return run(learning, name, tmp_path, *checkpoint, *more)

    return started


class Given:
    """In place of a library: the arguments of its runs, and the curves that they were given."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.curves: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def init(self, **arguments: Any) -> "Given":
        self.opened.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.curves.append((step, dict(values)))

    def finish(self) -> None:
        self.closed += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Given:
    given, module = Given(), ModuleType("wandb")
    module.init = given.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return given


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Given:
    given, module = Given(), ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, folder: Path, purge_step: int) -> None:
            given.init(folder=folder, purge_step=purge_step)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if not given.curves or given.curves[-1][0] != step:
                given.curves.append((step, {}))
            given.curves[-1][1][name] = value

        def close(self) -> None:
            given.finish()

    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return given


def without_step(rows: list[dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    return [(int(row["step"]), {name: value for name, value in row.items() if name != "step"}) for row in rows]


@pytest.mark.parametrize("name", TRAINERS)
def test_both_are_given_the_metrics(name: str, start: Start, wandb: Given, tensorboard: Given, tmp_path: Path) -> None:
    rows = start(name, "--wandb", "a project")
    assert len(rows) == 2
    for given in (wandb, tensorboard):
        assert given.curves == without_step(rows)
        assert given.closed == 1
    assert wandb.opened[0]["project"] == "a project" and wandb.opened[0]["resume"] is None
    assert tensorboard.opened == [{"folder": tmp_path / f"{name}.tensorboard", "purge_step": 1}]


def test_a_resumed_run_goes_on_in_both(start: Start, wandb: Given, tensorboard: Given, tmp_path: Path) -> None:
    start("sft", "--checkpoint", tmp_path / "run", "--wandb", "p")
    start("sft", "--checkpoint", tmp_path / "run", "--wandb", "p", "--resume", "--steps", 3)
    first, second = wandb.opened
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert [opened["purge_step"] for opened in tensorboard.opened] == [1, 3]
    assert [step for step, _ in tensorboard.curves] == [1, 2, 3]


def test_neither_is_needed(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(start("sft")) == 2 and not (tmp_path / "sft.tensorboard").exists()
    with pytest.raises(SystemExit, match="pip install wandb"):
        start("sft", "--wandb", "p")


def test_tensorboard_reads_what_was_written(start: Start, tmp_path: Path) -> None:
    """By the library itself, where it is installed."""
    pytest.importorskip("tensorboard", reason="no TensorBoard installed: its own reading of the events is not tried")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = start("sft")
    events = EventAccumulator(str(tmp_path / "sft.tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows
    ]
