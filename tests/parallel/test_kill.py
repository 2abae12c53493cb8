"""A run that is killed, told to stop, loses a rank or finds the disk full goes on as if it had not: (step, loss) to the
bit, on the layout it was started on."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STEPS = 10
RUN = ("--data", "text.txt", "--batch-size", "4", "--sequence-length", "16", "--save-every", "1")
ONE_OR_TWO = pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
PATIENCE = 600.0  # seconds; for machines that have much else to do


@pytest.fixture(scope="module")
def folder(placed_spec: Any, package_of: Any, tmp_path_factory: Any) -> Path:
    """A package for two ranks, and text to train on."""
    folder: Path = tmp_path_factory.mktemp("kill")
    package_of(placed_spec("deepseek", {"dp": 2, "ep": 2}), folder)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 400)
    return folder


class Run:
    """A run of the trainer that a test watches and disturbs. Its name is that of its metrics and checkpoints."""

    def __init__(self, folder: Path, name: str, ranks: int, steps: int, *more: str, restarts: int = 0) -> None:
        self.metrics, self.checkpoints = folder / f"{name}.jsonl", folder / name
        launch = ["torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts), "-m"]
        files = ("--metrics", self.metrics.name, "--checkpoint", name, "--steps", str(steps))
        command = [sys.executable, "-m", *(launch if ranks > 1 else []), "small_deepseek.train.train", *RUN, *files]
        self.said = folder / f"{name}.stderr"
        with self.said.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, *more],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                stderr=stderr,
                start_new_session=True,
            )

    def pairs(self) -> list[tuple[int, float]]:
        """(step, loss), of whole lines."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [(record["step"], record["loss"]) for record in records]

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something to happen while the run goes on."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.005)

    def until_step(self, step: int) -> None:
        self.until(lambda: step == 0 or any(done >= step for done, _ in self.pairs()))

    def rank(self, number: int) -> int | None:
        """The process id of a rank that torchrun has started; None while there is none."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            if f"RANK={number}".encode() in variables:
                return int(child)
        return None

    def send(self, number: int, rank: int) -> None:
        """A signal, to one rank."""
        process = self.rank(rank)
        assert process is not None
        os.kill(process, number)

    def kill(self) -> None:
        """All of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ends(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Iterator[Callable[[int], list[tuple[int, float]]]]:
    """The pairs of the run that nothing happens to, on so many ranks."""
    known: dict[int, list[tuple[int, float]]] = {}

    def pairs(ranks: int) -> list[tuple[int, float]]:
        if ranks not in known:
            run = Run(folder, f"unbroken{ranks}", ranks, STEPS)
            assert run.ends() == 0, run.said.read_text()
            known[ranks] = run.pairs()
        return known[ranks]

    yield pairs


def test_a_lost_rank_is_named_and_torchrun_goes_on(folder: Path, unbroken: Any) -> None:
    """Lost twice where one restart is allowed: the first time the run goes on by itself, the second time it ends."""
    run = Run(folder, "lost", 2, STEPS, restarts=1)
    run.until_step(3)
    first = run.rank(1)
    run.send(signal.SIGKILL, rank=1)
    run.until(lambda: run.rank(1) not in (None, first))
    run.until_step(5)
    run.send(signal.SIGKILL, rank=1)
    assert run.ends() != 0
    root_cause = run.said.read_text().partition("Root Cause")[2]
    assert "rank      : 1 " in root_cause and "Signal 9 (SIGKILL)" in root_cause
    again = Run(folder, "lost", 2, STEPS, "--resume")
    assert again.ends() == 0, again.said.read_text()
    assert again.pairs() == unbroken(2)


def test_all_ranks_save_and_leave_when_one_is_told_to(folder: Path, unbroken: Any) -> None:
    run = Run(folder, "told", 2, STEPS, "--save-every", "100")
    run.until_step(2)
    run.send(signal.SIGTERM, rank=1)
    assert run.ends() == 0, run.said.read_text()
    (last, _) = run.pairs()[-1]
    assert last < STEPS and (run.checkpoints / "latest").read_text() == f"step_{last:06d}\n"
    again = Run(folder, "told", 2, STEPS, "--resume")
    assert again.ends() == 0, again.said.read_text()
    assert again.pairs() == unbroken(2)


@pytest.mark.slow
def test_ctrl_c_reaches_torchrun_which_tells_all_ranks(folder: Path, unbroken: Any) -> None:
    """Ranks are in sessions of their own, so a terminal's Ctrl-C is torchrun's alone, and it hands the signal on."""
    run = Run(folder, "ctrl_c", 2, STEPS, "--save-every", "100")
    run.until_step(2)
    run.process.send_signal(signal.SIGINT)
    run.ends()  # torchrun's own code is that of an interrupted launcher
    (last, _) = run.pairs()[-1]
    assert last < STEPS and (run.checkpoints / "latest").read_text() == f"step_{last:06d}\n"
    again = Run(folder, "ctrl_c", 2, STEPS, "--resume")
    assert again.ends() == 0, again.said.read_text()
    assert again.pairs() == unbroken(2)


@ONE_OR_TWO
def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint(ranks: int, folder: Path, unbroken: Any) -> None:
    """Files may grow to 64 KiB, more than the metrics take and less than a checkpoint."""
    name = f"full{ranks}"
    assert Run(folder, name, ranks, 4).ends() == 0
    run = Run(folder, name, ranks, STEPS, "--resume")
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (2**16, 2**16))  # handed on to ranks, which start later
    assert run.ends() != 0
    said = run.said.read_text()
    assert "step_000005 was not written" in said and "File too large" in said
    assert (run.checkpoints / "latest").read_text() == "step_000004\n"
    again = Run(folder, name, ranks, STEPS, "--resume")
    assert again.ends() == 0, again.said.read_text()
    assert again.pairs() == unbroken(ranks)
    assert sorted(path.name for path in again.checkpoints.iterdir()) == ["latest", "step_000009", "step_000010"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_thirty_random_kills(ranks: int, folder: Path) -> None:
    """Each life has a random number of steps, none included, and ends at any moment of the next one."""
    steps, name, draw = 120, f"random{ranks}", random.Random(0)
    whole = Run(folder, f"whole{ranks}", ranks, steps)
    assert whole.ends() == 0
    expected = set(whole.pairs())
    for _ in range(30):
        start = newest(folder / name)
        run = Run(folder, name, ranks, steps, *(["--resume"] if start else []))
        run.until_step(min(start + draw.randrange(6), steps - 1))
        time.sleep(draw.uniform(0, 0.5))
        run.kill()
        assert set(run.pairs()) <= expected
    last = Run(folder, name, ranks, steps, "--resume")
    assert last.ends() == 0, last.said.read_text()
    assert last.pairs() == whole.pairs()


def newest(checkpoints: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none yet."""
    latest = checkpoints / "latest"
    return int(latest.read_text().strip().removeprefix("step_")) if latest.exists() else 0
