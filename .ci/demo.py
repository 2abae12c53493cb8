"""Compile a small model, train it for a few minutes on a CPU, and let it write. Run by `make demo`.

The text is part of Python's own standard library, which every machine that can run this has.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"
SOURCES = ("asyncio", "concurrent/futures", "json", "logging")
TRAIN = "--batch-size 4 --sequence-length 128 --steps 500 --learning-rate 4e-3 --warmup-steps 30 --decay-steps 350"
PROMPTS = {"def ": "1", "class ": "3"}  # and the seed of each
SAMPLE = "--max-new-tokens 120 --temperature 0.8"  # no further than the sequences that it was trained on
ROWS = 10  # of the table at the end


def main() -> None:
    RUNS.mkdir(exist_ok=True)
    say("1. Compile the spec to a package: spec/models/tiny.yaml -> runs/tiny")
    run(ROOT, "dsc", "compile", "tiny", "-o", "runs/tiny")

    say("2. Train it on part of Python's standard library, one token per byte")
    collect_text(RUNS / "text")
    shutil.rmtree(RUNS / "checkpoints", ignore_errors=True)
    files = ("--data", "text", "--metrics", "metrics.jsonl", "--checkpoint", "checkpoints")
    print("  The loss adds to the next byte's the prediction of the byte after it, and the balance of the experts.\n")
    run(RUNS, "python", "-m", "tiny.train.train", *files, "--eval-every", "100", *TRAIN.split())
    print_losses(RUNS / "metrics.jsonl")

    say("3. Let it write")
    for prompt, seed in PROMPTS.items():
        generate = ("python", "-m", "tiny.infer.generate", "--checkpoint", "checkpoints", prompt)
        run(RUNS, *generate, "--seed", seed, *SAMPLE.split())
        print()

    say("Where to look")
    print("  runs/tiny/model.py           the model: one class for each block, one line for each operation")
    print("  runs/tiny/README.md          its parameters, FLOPs and cache bytes, computed from the graph")
    print("  runs/metrics.jsonl           every step of the training")
    print("  runs/checkpoints             safetensors under Hugging Face names, and what --resume needs")
    print("  spec/models/tiny.yaml        the spec: change a number, compile again, and compare runs/tiny")


def say(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def run(folder: Path, *command: str) -> None:
    """Print a command and run it with the programs that stand beside this Python."""
    print(f"  (in {folder.relative_to(ROOT.parent)}) $ {shlex.join(command)}\n", flush=True)
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": programs})
    if done.returncode:
        sys.exit(done.returncode)


def collect_text(folder: Path) -> None:
    """Copies of the packages in SOURCES."""
    library = Path(sysconfig.get_paths()["stdlib"])
    shutil.rmtree(folder, ignore_errors=True)
    for name in SOURCES:
        (folder / name).mkdir(parents=True)
        for file in (library / name).glob("*.py"):
            shutil.copyfile(file, folder / name / file.name)


def print_losses(metrics: Path) -> None:
    """Losses in nats for one byte: the mean over the steps since the row before, and on text held out."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    size = max(1, len(records) // ROWS)
    print("\n    step   training   held out   (next byte, in nats)")
    for end in range(size, len(records) + 1, size):
        rows = records[end - size : end]
        mean = sum(row["main"] for row in rows) / size
        held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
        print(f"  {end:6}   {mean:8.3f}   {held_out[-1]:8.3f}" if held_out else f"  {end:6}   {mean:8.3f}")


if __name__ == "__main__":
    main()
