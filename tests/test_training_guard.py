"""Steps that are not like the others: what the spec says becomes of them, and what a run looks like then."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

RUN = ("--batch-size", "4", "--sequence-length", "16", "--warmup-steps", "0", "--save-every", "1")


def package(folder: Path, training: dict[str, Any]) -> None:
    data = load("tiny").model_dump()
    data |= {"hidden_size": 64, "layers": [{"repeat": 1, "ffn": kind} for kind in ("dense", "moe")]}
    write(emit(build(ModelSpec.model_validate(data | {"training": training}))), folder)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> Any:
    """The trainer's modules, which leave spikes of 3 deviations and what is not finite out."""
    folder = tmp_path_factory.mktemp("guard") / "skipping"
    package(folder, {"not_finite": "skip", "spike": {"action": "skip", "window": 8, "deviations": 3.0}})
    return package_at(folder)


def test_a_spike_is_one_by_the_window_before_it(modules: Any) -> None:
    """Against the definition, on made-up losses; what is skipped is in the window too, so that a new level is one."""
    guard, generator = modules("train.guard").Guard(), torch.Generator().manual_seed(0)
    losses = (3 + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)).tolist()
    losses[3], losses[20], losses[40:] = 9.0, 9.0, [loss + 2 for loss in losses[40:]]
    actions = [guard.judge(step, loss, 1.0) for step, loss in enumerate(losses)]
    for step, loss in enumerate(losses):
        past = torch.tensor(losses[max(0, step - 8) : step], dtype=torch.float64)
        spike = len(past) >= 4 and loss > past.mean() + 3 * past.std()
        assert actions[step] == ("skip" if spike else "take"), step
    assert actions[3] == "take" and actions[20] == "skip" and actions[40] == "skip" and actions[-1] == "take"
    assert guard.counts() == {"skipped": actions.count("skip"), "spikes": actions.count("skip")}


def test_a_norm_is_looked_at_too(modules: Any) -> None:
    guard = modules("train.guard").Guard()
    assert all(guard.judge(step, 3.0 + step % 2 / 10, 1.0 + step % 2 / 10) == "take" for step in range(10))
    assert guard.judge(10, 3.0, 2.0) == "skip"


def test_a_run_does_not_skip_for_ever(modules: Any) -> None:
    guard = modules("train.guard").Guard()
    actions = [guard.judge(step, math.nan, 1.0) for step in range(10)]
    assert actions == ["skip"] * 9 + ["stop"]


class Broken:
    """A layout whose loss and gradients are not finite in one step."""

    def __init__(self, step: int) -> None:
        self.step, self.at = 0, step

    def __call__(self, layout: Any, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.step += 1
        losses: dict[str, torch.Tensor] = layout.losses(tokens, labels)
        if self.step != self.at:
            return losses
        for _, weight in layout.named_parameters():
            weight.grad = torch.full_like(weight, math.nan)
        return {name: loss * math.nan for name, loss in losses.items()}


def train(modules: Any, *args: object, broken_at: int = -1) -> list[dict[str, Any]]:
    """The records of a run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        broken = Broken(broken_at)
        patch.setattr(modules("train.single").Single, "step", lambda *batch: broken(*batch))
        patch.setattr(sys, "argv", ["train", *map(str, args)])
        patch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
        trainer = modules("train.train")
        trainer.train(trainer.parse_arguments())
    metrics = Path(str(args[args.index("--metrics") + 1]))
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_a_step_that_is_skipped_moves_nothing_and_counts(modules: Any, tmp_path: Path) -> None:
    """Weights and biases after it are those before it, the next step has the next batch, and a resumed run agrees."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 60)
    common = ("--data", tmp_path / "text.txt", *RUN, "--keep", 9)
    run = (*common, "--checkpoint", tmp_path / "run", "--metrics", tmp_path / "run.jsonl")
    records = train(modules, *run, "--steps", 8, broken_at=5)
    assert [record["skipped"] for record in records] == [0] * 4 + [1] * 4
    assert math.isnan(records[4]["loss"]) and all(math.isfinite(record["loss"]) for record in records[5:])
    weights = [load_file(tmp_path / f"run/step_{step:06}/model.safetensors") for step in (4, 5, 6)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[1][name], weights[2][name]) for name in weights[0] if "e_score" not in name)

    half = (*common, "--checkpoint", tmp_path / "half", "--metrics", tmp_path / "half.jsonl")
    train(modules, *half, "--steps", 6, broken_at=5)
    resumed = train(modules, *half, "--steps", 8, "--resume")
    assert [record["loss"] for record in resumed[5:]] == [record["loss"] for record in records[5:]]


def test_without_a_policy_there_is_no_guard() -> None:
    data = load("tiny").model_dump()
    files = emit(build(ModelSpec.model_validate(data)))
    assert "train/guard.py" not in files and "guard" not in files["train/train.py"]
    counting = emit(build(ModelSpec.model_validate(data | {"training": {"spike": {"action": "count"}}})))
    assert '"skip"' not in counting["train/guard.py"] and "skipped" not in counting["train/train.py"]
