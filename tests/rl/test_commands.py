"""train.sft and train.grpo as a user starts them: what they write, and that a killed run goes on bit by bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rl.commands import ENV, command, grpo, records, run


def launch(package: Path, module: str, *args: object) -> None:
    """On two ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    ranks = [*torchrun, *command(package, module, *args)[1:]]
    done = subprocess.run(ranks, cwd=package.parent, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_supervised_steps_are_the_same_when_killed(package: Path, questions: Path, tmp_path: Path) -> None:
    """Weights, and with the metrics the answers and rows of each step, after a kill."""
    common = ("--data", questions, "--batch-size", 6, "--row-tokens", 9, "--micro-batch", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(package, "sft", *common, "--steps", 9, "--checkpoint", whole, "--metrics", tmp_path / "whole.jsonl")
    saved = ("--checkpoint", killed, "--save-every", 2, "--metrics", tmp_path / "killed.jsonl")
    many = command(package, "sft", *common, "--steps", 400, *saved)
    process = subprocess.Popen(many, cwd=package.parent, env=ENV, stderr=subprocess.PIPE)
    while not (killed / "latest").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    newest = int((killed / "latest").read_text().strip().removeprefix("step_"))
    assert newest < 9, "the run was not killed early enough to go on"
    run(package, "sft", *common, "--steps", 9, *saved, "--resume")
    assert records(tmp_path / "killed.jsonl") == records(tmp_path / "whole.jsonl")
    ends = [load_file(next((folder / "step_000009").glob("*.safetensors"))) for folder in (whole, killed)]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_supervised_steps_are_the_same_on_two_ranks(package: Path, questions: Path, tmp_path: Path) -> None:
    """Two of the three rows go to one of them."""
    common = ("--data", questions, "--steps", 3, "--batch-size", 9, "--row-tokens", 9, "--dtype", "float64")
    run(package, "sft", *common, "--metrics", tmp_path / "one.jsonl")
    launch(package, "sft", *common, "--metrics", tmp_path / "two.jsonl")
    one, two = (records(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    assert [row["rows"] for row in one] == [3] * 3
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-11, abs=1e-13)


def test_supervised_training_lowers_the_loss_of_answers(start: Path) -> None:
    rows = records(start.parent / "sft.jsonl")
    assert rows[-1]["main"] < rows[0]["main"] / 2
    assert [row["step"] for row in rows] == list(range(1, 31))


def test_metrics_say_what_is_promised(package: Path, start: Path, questions: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    more = ("--steps", 2, "--samples", samples, "--watch", "think_then_answer", "--micro-batch", 5)
    run(package, "grpo", *grpo(start, questions, tmp_path / "run", *more))
    rows = records(tmp_path / "run" / "metrics.jsonl")
    promised = {"reward", "kl", "mismatch", "length", "entropy", "clipped", "routers_differing", "watched"}
    assert promised <= rows[0].keys()
    assert all(0 <= row["mismatch"] < 1e-9 and row["routers_differing"] == row["reward_failures"] == 0 for row in rows)
    assert rows[0]["watched"] == 0 < rows[0]["length"] <= 8
    assert json.loads(samples.read_text().splitlines()[0]).keys() == {"step", "prompt", "completion", "reward"}
    newest = tmp_path / "run" / "grpo" / (tmp_path / "run" / "grpo" / "latest").read_text().strip()
    before = load_file(next(start.glob("step_*/*.safetensors")))
    after = load_file(next(newest.glob("*.safetensors")))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert "model.embed_tokens.weight" in changed
    assert not any("e_score_correction_bias" in name for name in changed)
    predictor = {name for name in changed if ".layers.4." in name}  # of multi-token prediction
    assert all("embed_tokens" in name or "shared_head.head" in name for name in predictor), predictor  # the model's own


def test_a_killed_run_goes_on_bit_by_bit(package: Path, start: Path, questions: Path, tmp_path: Path) -> None:
    run(package, "grpo", *grpo(start, questions, tmp_path / "whole", "--steps", 6))
    arguments = grpo(start, questions, tmp_path / "killed", "--steps", 6, "--save-every", 2)
    process = subprocess.Popen(
        command(package, "grpo", *arguments), cwd=package.parent, env=ENV, stderr=subprocess.PIPE
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(package, "grpo", *arguments, "--resume")
    assert records(metrics) == records(tmp_path / "whole" / "metrics.jsonl")
    ends = [
        load_file(next((tmp_path / name / "grpo" / "step_000006").glob("*.safetensors")))
        for name in ("whole", "killed")
    ]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_two_ranks_take_the_steps_of_one(package: Path, start: Path, questions: Path, tmp_path: Path) -> None:
    """The same answers, and gradients that are sums: only rounding differs."""
    more = ("--steps", 3, "--dtype", "float64")
    run(package, "grpo", *grpo(start, questions, tmp_path / "one", *more))
    launch(package, "grpo", *grpo(start, questions, tmp_path / "two", *more))
    one, two = (records(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row.keys() for row in one] == [row.keys() for row in two] and len(one) == 3
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-12, abs=1e-13)
    ends = [
        load_file(next((tmp_path / name / "grpo" / "step_000003").glob("*.safetensors"))) for name in ("one", "two")
    ]
    assert max((ends[0][name] - ends[1][name]).abs().max().item() for name in ends[0]) < 1e-12


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--reward", "nothing"), "neither module:function nor one of"),
        (("--prompts", "nowhere.jsonl"), "No such file"),
        (("--checkpoint", "nowhere"), "nowhere: no such checkpoint"),
        (("--tokenizer", "nowhere"), "nowhere"),
        (("--samples", "/"), "--samples /"),
        (("--metrics", "/"), "--metrics /"),
        (("--device", "abacus"), "argument --device: "),
        (("--seed", 2**23), "has to be less than 8388608"),
        (("--reward-seconds", 0), "no answer could be judged"),
        (("--watch", "math:pi"), "--watch math:pi"),
        (("--reward", "math:sqrt"), "(prompt, completion)"),
    ],
)
def test_what_is_missing_is_said(
    package: Path, start: Path, questions: Path, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    assert said in run(package, "grpo", *grpo(start, questions, tmp_path / "run", "--steps", 1, *args), fails=True)
