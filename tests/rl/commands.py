"""Starting train.train, train.sft and train.grpo of a package as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENV = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
TIMES = ("seconds", "tokens_per_second")


def command(package: Path, module: str, *args: object) -> list[str]:
    return [sys.executable, "-m", f"{package.name}.train.{module}", *map(str, args)]


def run(package: Path, module: str, *args: object, fails: bool = False) -> str:
    done = subprocess.run(
        command(package, module, *args), cwd=package.parent, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout, done.stderr
    return done.stderr


def records(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def grpo(start: Path, questions: Path, folder: Path, *args: object) -> tuple[object, ...]:
    """The arguments of a run that begins at the supervised weights and is kept in a folder of its own."""
    if not folder.exists():
        folder.mkdir()
        newest = (start / "latest").read_text().strip()
        (folder / "latest").write_text(newest)
        (folder / newest).symlink_to(start / newest)
    common = ("--reward", "exact_match", "--prompts", questions, "--checkpoint", folder, "--questions", 4)
    return *common, "--learning-rate", "1e-3", "--metrics", folder / "metrics.jsonl", *args
