"""Compile a tiny model, teach it the form of a task, then let it learn from rewards alone. Run by `make demo-r1`.

The task is to sort six digits; a reward says whether an answer is right. Beside the run goes a control, whose rewards
are drawn at random: it must not get better. Some minutes on two cores.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from demo import RUNS, run, say

# The recipe of tests/benchmarks/rewards.py, which rose on three seeds; the supervised start ends early on purpose.
WARM = "--steps 80 --batch-size 64 --learning-rate 3e-3 --warmup-steps 20 --seed 3"
LEARN = "--steps 50 --questions 32 --learning-rate 2e-4 --watch exact_match --judges 1 --seed 3"
SAMPLES = 4  # lines shown at the end
CONTROL = '''"""The control's reward: worth nothing, for it says nothing about the answer."""

import random


def coin(prompt: str, completion: str) -> float:
    return float(random.random() < 0.5)
'''
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 360, 56, 48, 44
COLORS = {"rewarded": "#1f6feb", "control": "#8b949e"}


def main() -> None:
    RUNS.mkdir(exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # so small a model is slower on two
    say("1. Compile the spec to a package: spec/models/tiny-r1.yaml -> runs/tiny_r1")
    run(RUNS.parent, "dsc", "compile", "tiny-r1", "-o", "runs/tiny_r1", "--force")

    say("2. Supervised start: sort six digits, until some answers are right")
    work = RUNS / "r1"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_questions(work / "examples.jsonl", 8000, seed=1)
    write_questions(work / "questions.jsonl", 2000, seed=2)
    (RUNS / "control.py").write_text(CONTROL)
    sft = ("--data", "r1/examples.jsonl", "--metrics", "r1/sft.jsonl", "--checkpoint", "r1/rewarded")
    run(RUNS, "python", "-m", "tiny_r1.train.sft", *sft, *WARM.split())
    shutil.copytree(work / "rewarded", work / "control")

    say("3. Learn from rewards: eight answers to each question, right ones become likelier; beside it the control")
    control = start("control", "control:coin", subprocess.DEVNULL)
    rewarded = start("rewarded", "exact_match", None)
    if rewarded.wait() or control.wait():
        sys.exit(1)

    curves = {name: watched(work / f"{name}.jsonl") for name in COLORS}
    (work / "reward.svg").write_text(plot(curves))
    for name, curve in curves.items():
        print(f"  {name:9} {mean(curve[:5]):.2f} right at the start, {mean(curve[-5:]):.2f} at the end")
    say("Some of the last answers")
    for line in (work / "samples.jsonl").read_text().splitlines()[-SAMPLES:]:
        row = json.loads(line)
        print(f"  {row['prompt']}{row['completion']}   reward {row['reward']:.0f}")
    say("Where to look")
    print("  runs/r1/reward.svg           the share of right answers, and the control's")
    print("  runs/tiny_r1/train/          grpo.py, grpo_loss.py, rewards.py, policy.py: short files, made to be read")
    print("  runs/r1/rewarded.jsonl       every step: reward, kl, mismatch, length")


def write_questions(path: Path, number: int, seed: int) -> None:
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(number):
            digits = "".join(draw.choices("0123456789", k=6))
            file.write(json.dumps({"prompt": f"{digits}>", "answer": "".join(sorted(digits))}) + "\n")


def start(name: str, reward: str, errors: int | None) -> subprocess.Popen[bytes]:
    """A run of its own from a copy of the supervised weights, on one core."""
    files = ("--prompts", "r1/questions.jsonl", "--checkpoint", f"r1/{name}", "--metrics", f"r1/{name}.jsonl")
    more = ("--samples", "r1/samples.jsonl") if name == "rewarded" else ()
    command = [sys.executable, "-m", "tiny_r1.train.grpo", "--reward", reward, *files, *more, *LEARN.split()]
    return subprocess.Popen(command, cwd=RUNS, stderr=errors)


def watched(metrics: Path) -> list[float]:
    """The share of right answers at each step, whatever was rewarded."""
    return [json.loads(line)["watched"] for line in metrics.read_text().splitlines()]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def smooth(curve: Sequence[float]) -> list[float]:
    """The mean of up to five steps around each."""
    return [mean(curve[max(0, i - 2) : i + 3]) for i in range(len(curve))]


def plot(curves: dict[str, list[float]]) -> str:
    """Share of right answers by step: each step faint, means of five as lines."""
    right, low = WIDTH - 96, HEIGHT - BOTTOM
    steps = max(map(len, curves.values()))

    def x(step: int) -> float:
        return LEFT + (right - LEFT) * step / max(1, steps - 1)

    def y(share: float) -> float:
        return low - (low - TOP) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#24292f">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">Share of right answers while learning from rewards</text>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">step</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{LEFT} {y(share):.1f}H{right}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for step in range(0, steps, max(1, steps // 6)):
        parts.append(f'<text x="{x(step):.1f}" y="{low + 18}" text-anchor="middle">{step + 1}</text>')
    for name, curve in curves.items():
        dots = "".join(f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="1.6"/>' for i, v in enumerate(curve))
        line = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(smooth(curve)))
        parts.append(f'<g fill="{COLORS[name]}" opacity="0.35">{dots}</g>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[name]}" stroke-width="2"/>')
        end = y(smooth(curve)[-1]) + 4
        parts.append(f'<text x="{right + 8}" y="{end:.1f}" fill="{COLORS[name]}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
