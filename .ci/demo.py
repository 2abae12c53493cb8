"""Compile a small model, train it for some minutes on two processes, stop and resume it once, and let it write:
by the package's own engine and, where transformers is installed, by that too. Run by `make demo`.

The text is part of Python's own standard library, which every machine that can run this has.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"
PLACED = """
cluster: {kind: cpu, nodes: 2} # two processes
placement: {dp: 2, ep: 2, pp: 1, zero: 1, micro_batch: 2} # each with half of the batch and half of the experts
"""
SOURCES = ("asyncio", "concurrent/futures", "json", "logging")
STEPS, STOPPED = 400, 120
TRAIN = f"--batch-size 4 --sequence-length 128 --steps {STEPS} --learning-rate 4e-3 --warmup-steps 30 --decay-steps 280"
PROMPTS = {"def ": "1", "class ": "3"}  # and the seed of each
LENGTH = 120  # tokens: no further than the sequences that it was trained on
ROWS = 10  # of the table at the end


def main() -> None:
    RUNS.mkdir(exist_ok=True)
    say("1. Compile a spec for two processes to a package: spec/models/tiny.yaml and two lines -> runs/tiny")
    (RUNS / "tiny.yaml").write_text((ROOT / "spec/models/tiny.yaml").read_text() + PLACED)
    run(RUNS, "dsc", "compile", "tiny.yaml", "-o", "tiny")
    train()

    say("3. Its weights for everyone: safetensors under Hugging Face names")
    run(RUNS, "python", "-m", "tiny.train.export", "--checkpoint", "checkpoints", "--out", "hf", "--dtype", "float32")
    say("4. Let it write")
    for prompt, seed in PROMPTS.items():
        run(RUNS, *generate(prompt), "--temperature", "0.8", "--seed", seed)
    print("\n  The likeliest text. What multi-token prediction guesses, the model only has to check:\n")
    run(RUNS, *generate("def "), "--temperature", "0")
    compare_with_transformers()

    say("Where to look")
    print("  runs/tiny/model.py           the model: one class for each block, one line for each operation")
    print("  runs/tiny/train/parallel.py  how the two processes share it")
    print("  runs/tiny/README.md          its parameters, FLOPs and cache bytes, computed from the graph")
    print("  runs/metrics.jsonl           every step of the training")
    print("  runs/checkpoints, runs/hf    what --resume needs; safetensors under Hugging Face names")
    print("  runs/tiny.yaml               the spec: change a number, compile again, and compare runs/tiny")


def train() -> None:
    say("2. Train it on part of Python's standard library, one token per byte")
    collect_text(RUNS / "text")
    shutil.rmtree(RUNS / "checkpoints", ignore_errors=True)
    launch = ("torchrun", "--nproc-per-node", "2", "-m", "tiny.train.train")
    files = ("--data", "text", "--metrics", "metrics.jsonl", "--checkpoint", "checkpoints", "--eval-every", "100")
    command = (*launch, *files, *TRAIN.split())
    print("  The loss adds to the next byte's the prediction of the byte after it, and the balance of the experts.")
    print(f"  After {STOPPED} steps one of the two is told to stop (SIGTERM): both save and leave.\n")
    (RUNS / "metrics.jsonl").unlink(missing_ok=True)
    run(RUNS, *command, stop_after=STOPPED)
    print("\n  And on from there, bit by bit as if it had not stopped:\n")
    run(RUNS, *command, "--resume")
    print_losses(RUNS / "metrics.jsonl")


def generate(prompt: str) -> tuple[str, ...]:
    command = ("python", "-m", "tiny.infer.generate", "--checkpoint", "hf", "--max-new-tokens", str(LENGTH))
    return (*command, prompt)


def compare_with_transformers() -> None:
    """The same greedy text from the same files; anything else ends the demo."""
    if find_spec("transformers") is None:
        print("  transformers is not installed: pip install transformers compares the two.")
        return
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    sys.path.insert(0, str(RUNS))
    from tiny.infer.generate import load_engine

    logging.set_verbosity_error()
    engine, theirs = load_engine(RUNS / "hf"), AutoModelForCausalLM.from_pretrained(RUNS / "hf", dtype=torch.float32)
    for prompt in PROMPTS:
        ids = list(prompt.encode())
        (ours,) = engine.generate([ids], max_new_tokens=LENGTH, temperature=0.0)
        greedy = theirs.generate(torch.tensor([ids]), max_new_tokens=LENGTH, do_sample=False)[0, len(ids) :]
        if ours != greedy.tolist()[: len(ours)]:
            sys.exit(f"{prompt!r}: the package writes {bytes(ours)!r} and transformers {bytes(greedy.tolist())!r}")
    print(f"  transformers reads runs/hf and writes the same, {LENGTH} tokens for each prompt.")


def say(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def run(folder: Path, *command: str, stop_after: int | None = None) -> None:
    """Print a command and run it with the programs that stand beside this Python, to its end or to a training step."""
    print(f"  (in {folder.relative_to(ROOT.parent)}) $ {shlex.join(command)}\n", flush=True)
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"})
    if stop_after is not None:
        stop_one(process, stop_after)
    if process.wait():
        sys.exit(process.returncode)


def stop_one(process: subprocess.Popen[bytes], step: int) -> None:
    """Tell one of the processes that torchrun has started to stop, once a step is in the metrics."""
    metrics = RUNS / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < step):
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGTERM)


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
