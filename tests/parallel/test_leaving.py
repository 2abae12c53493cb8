"""Ranks leave together, and nothing of their groups is left: a thread of gloo that Python's end meets is aborted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LEAVING = Path(__file__).with_name("leaving.py")
RANKS = 2
SIZES = ("--data", "text.txt", "--batch-size", "4", "--sequence-length", "16", "--checkpoint", "run")
STEPS = ("train.train", "train", *SIZES, "--steps", "2", "--metrics", "m.jsonl")
EVALUATION = ("train.train", "train", *SIZES, "--evaluate", "--resume")
EXPORT = ("train.export", "main", "--checkpoint", "run", "--out", "hf")
ANSWERS = ("train.sft", "learn", "--data", "answers.jsonl", "--steps", "1", "--metrics", "s.jsonl", "--start", "hf")
RL = {"rl": {"max_new_tokens": 8}, "tokens": {"eos": 255}}
KEPT: dict[str, tuple[str, str]] = {
    "groups are not taken down": ("    dist.destroy_process_group()\n", ""),
    "objects that refer to each other stay": ("    gc.collect()  #", "    #"),
    "meshes in torch's caches have groups": ('getattr(found, "_pg_registry", {}).clear()', "pass"),
}


@pytest.fixture
def left(placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """The threads of groups that every rank has after some commands, one after the other."""

    def find(*commands: tuple[str, ...], change: Callable[[str, str], str] | None = None) -> list[list[str]]:
        package = package_of({**placed_spec("llama", {"dp": RANKS, "zero": 2}), **RL}, tmp_path, change)
        (tmp_path / "text.txt").write_text("What is said once is said twice, and what is said twice is said. " * 60)
        (tmp_path / "answers.jsonl").write_text('{"prompt": "once", "answer": "twice"}\n' * 4)
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS))
        for module, function, *given in commands:
            run_in(
                *torchrun,
                str(LEAVING),
                str(tmp_path),
                f"{package}.{module}",
                function,
                json.dumps(given),
                folder=tmp_path,
            )
        return [json.loads((tmp_path / f"threads_{rank}.json").read_text()) for rank in range(RANKS)]

    return find


@pytest.mark.parametrize(
    "commands", [(STEPS,), (STEPS, EVALUATION), (STEPS, EXPORT), (STEPS, EXPORT, ANSWERS)], ids=str
)
def test_nothing_of_a_group_is_left(commands: tuple[tuple[str, ...], ...], left: Any) -> None:
    assert left(*commands) == [[]] * RANKS


@pytest.mark.parametrize("fault", KEPT)
def test_what_keeps_a_group_is_noticed(fault: str, left: Any, planted: Any) -> None:
    assert all(left(STEPS, change=planted("together.py", *KEPT[fault])))
