"""What rewards teach: the share of right answers before and after steps of GRPO, by seed, and a control beside each.

    python tests/benchmarks/rewards.py [--seeds N ...] [--steps N] [--out FILE.jsonl]

The zoo's tiny-r1, by its own commands: a short supervised start at sorting six digits, then steps on the reward
exact_match; the control begins with the same weights, and its rewards are drawn at random. Before and after, 1,000
questions that no training sees are answered at temperature 1, as in training, each from the same seed of its own.
The supervised start ends early on purpose: there must be right answers to reward, and room above them.
"""

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load

START = "--steps 80 --batch-size 64 --learning-rate 3e-3 --warmup-steps 20"
LEARN = "--questions 32 --learning-rate 2e-4 --judges 1"
Rows = list[dict[str, str]]
EXAMPLES, QUESTIONS, HELD_OUT = 8000, 2000, 1000
ANSWERS_SEED = 10**6  # of the held-out questions' answers
CONTROL = """
import random

def coin(prompt, completion):
    return float(random.random() < 0.5)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="append a line of JSON for each seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        held_out = prepared(Path(folder))
        for seed in arguments.seeds:
            result = {
                "benchmark": "rewards",
                "seed": seed,
                "steps": arguments.steps,
                **measured(Path(folder), held_out, seed, arguments.steps),
                "held_out": HELD_OUT,
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
            print(json.dumps(result), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(result) + "\n")


def prepared(folder: Path) -> Rows:
    """The package and what it learns from, in a folder; the questions held out."""
    write(emit(build(load("tiny-r1"))), folder / "tiny_r1")
    sys.path.insert(0, str(folder))
    (folder / "control.py").write_text(CONTROL)
    rows = questions(EXAMPLES + QUESTIONS + HELD_OUT)
    write_rows(folder / "examples.jsonl", rows[:EXAMPLES])
    write_rows(folder / "questions.jsonl", rows[EXAMPLES:-HELD_OUT])
    return rows[-HELD_OUT:]


def measured(folder: Path, held_out: Rows, seed: int, steps: int) -> dict[str, float]:
    """The share of right answers after the supervised start, and after learning from each kind of reward."""
    home = f"seed_{seed}"
    start = ("--data", "examples.jsonl", "--checkpoint", f"{home}/start", "--metrics", f"{home}/start.jsonl")
    run(folder, "sft", *start, *START.split(), "--seed", str(seed))
    found = {"start": accuracy(folder / home / "start", held_out)}
    for name, reward in {"rewarded": "exact_match", "control": "control:coin"}.items():
        shutil.copytree(folder / home / "start", folder / home / name)
        files = ("--prompts", "questions.jsonl", "--checkpoint", f"{home}/{name}", "--metrics", f"{home}/{name}.jsonl")
        run(folder, "grpo", "--reward", reward, *files, *LEARN.split(), "--steps", str(steps), "--seed", str(seed))
        found[name] = accuracy(folder / home / name / "grpo", held_out)
    return found


def questions(number: int) -> Rows:
    """Of six digits each, no two alike."""
    drawn = random.Random(1).sample(range(10**6), number)
    digits = (f"{value:06}" for value in drawn)
    return [{"prompt": f"{text}>", "answer": "".join(sorted(text))} for text in digits]


def write_rows(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, module: str, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", f"tiny_r1.train.{module}", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


def accuracy(trained: Path, held_out: Rows) -> float:
    """The share of right answers of a run's newest weights, by the engine."""

    def package(module: str) -> Any:
        return importlib.import_module(f"tiny_r1.{module}")

    model = package("model").Model().eval()
    package("checkpoint").load_hf(model, trained / (trained / "latest").read_text().strip())
    reader = package("train.questions").Reader(None)
    asked = [list(row["prompt"].encode()) for row in held_out]
    answers = package("train.rollout").rollout(model, asked, reader.ends, ANSWERS_SEED).answers
    right = [reader.text(answer).strip() == row["answer"] for answer, row in zip(answers, held_out, strict=True)]
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
