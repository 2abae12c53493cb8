"""What options do to a run: the trainer itself, for some steps, against their formulas."""

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsc.spec.rl import LengthPenalty

GROUP, LONGEST = 4, 8


class Judging:
    """In place of processes: a worth that depends on the text alone; NaN for the answers of some numbers."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        self.failing, self.seen, self.failures = failing, 0, 0

    def __enter__(self) -> "Judging":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge(self, samples: Sequence[tuple[str, str, str]]) -> list[float]:
        found = []
        for _, text, _ in samples:
            fails = self.seen in self.failing
            found.append(math.nan if fails else random.Random(text).random())
            self.failures += fails
            self.seen += 1
        return found


@dataclass
class Steps:
    """Of a run: its metrics, and what each rollout and each optimizer step was given."""

    rows: list[dict[str, float]]
    judged: list[Any] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)
    stepped: list[Any] = field(default_factory=list)
    learner: Any = None


@pytest.fixture(scope="module")
def begun(learning: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with which some answers end in time, and some are cut off."""
    folder = tmp_path_factory.mktemp("options")
    rows = ({"prompt": f"{n}>", "answer": str(n) * (n % 12)} for n in range(1, 60))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", folder / "questions.jsonl", "--steps", 12, "--learning-rate", 0.003, "--seed", 3)
    started(learning()("train.sft"), *flags, "--checkpoint", folder / "start", "--metrics", folder / "sft.jsonl")
    return folder


def started(module: Any, *flags: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, flags)])
        module.learn(module.parse_arguments())


@pytest.fixture
def run(learning: Any, begun: Path, tmp_path: Path) -> Callable[..., Steps]:
    def finished(steps: int, failing: Sequence[int] = (), **rl: object) -> Steps:
        module = learning(**{"group_size": GROUP, "max_new_tokens": LONGEST, "epochs": 1, **rl})("train.grpo")
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for item in (begun / "start").iterdir():
            (folder / item.name).symlink_to(item)
        kept = Steps([])

        class Recorded(module.Run):  # type: ignore[misc]
            def experience(self, judged: Any) -> Any:
                kept.judged.append(judged)
                found = super().experience(judged)
                kept.taken.append(found[0])
                kept.learner = self.learner
                return found

        class Stepped(module.Learner):  # type: ignore[misc]
            def step(self, taken: Any, *more: float) -> Any:
                kept.stepped.append(taken)
                return super().step(taken, *more)

        flags = ("--reward", "exact_match", "--prompts", begun / "questions.jsonl", "--checkpoint", folder)
        more = ("--steps", steps, "--metrics", folder / "m.jsonl", "--questions", 6, "--learning-rate", 1e-3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "Run", Recorded)
            patch.setattr(module, "Learner", Stepped)
            patch.setattr(module, "Judges", lambda names, *_: Judging(failing if names else ()))
            started(module, *flags, *more, "--dtype", "float64")
        kept.rows = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
        return kept

    return finished


def by_hand(rewards: Tensor) -> list[float]:
    """Advantages of groups, answer by answer."""
    found = []
    for group in rewards.tolist():
        mean = sum(group) / GROUP
        deviation = math.sqrt(sum((worth - mean) ** 2 for worth in group) / (GROUP - 1))
        found += [(worth - mean) / (deviation + 1e-4) for worth in group]
    return found


def test_a_length_penalty_is_taken_from_rewards(run: Any) -> None:
    """0 up to 4 tokens, then 1/8 a token up to 0.5 for 8 (DAPO, equation 13); the metrics have the whole reward."""
    steps = run(1, length_penalty=LengthPenalty(buffer=4, weight=0.5))
    (judged,), (taken,) = steps.judged, steps.taken
    lengths = (judged.answers.labels != -100).sum(1)
    assert lengths.min() <= 5 and lengths.max() == LONGEST, lengths
    penalty = [[0, 0, 0, 0, 0, 0.125, 0.25, 0.375, 0.5][length] for length in lengths]
    expected = by_hand(judged.rewards - torch.tensor(penalty).view_as(judged.rewards))
    assert taken.advantage.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected, by_hand(judged.rewards), strict=True)) > 0.1
    assert steps.rows[0]["reward"] == pytest.approx(judged.rewards.mean().item())


@pytest.mark.parametrize("masked", [True, False])
def test_answers_that_were_cut_off_are_left_out(run: Any, masked: bool) -> None:
    """Of weights, which sum to one over what is left, and of the entropy, the mean of -logp there."""
    steps = run(1, overlong_mask=masked, denominator="tokens", kl=0.0)
    (judged,), (taken,) = steps.judged, steps.taken
    cut, said = judged.answers.cut_off, judged.answers.labels != -100
    assert 0 < cut.sum() < len(cut)
    left = said & ~cut.unsqueeze(1) if masked else said
    assert taken.mask.equal(left.double())
    torch.testing.assert_close(taken.weight, left.double() / left.sum())
    assert steps.rows[0]["entropy"] == pytest.approx(-(taken.old * left).sum().item() / left.sum().item())
    alone = (-(taken.advantage.unsqueeze(1)) * left / left.sum()).sum().item()  # ratios are 1 at first
    assert steps.rows[0]["loss"] == pytest.approx(alone, abs=1e-9)


def test_a_reference_is_refreshed_when_it_is_time(run: Any) -> None:
    """Then policy and reference are one and the divergence is zero."""
    refreshed = [row["kl"] for row in run(3, reference_refresh=2).rows]
    kept = [row["kl"] for row in run(3, reference_refresh=None).rows]
    assert [kl > 1e-9 for kl in refreshed] == [False, True, False], refreshed
    assert [kl > 1e-9 for kl in kept] == [False, True, True], kept


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_are_steps_on_the_same_answers(run: Any, epochs: int) -> None:
    """The last of them finds a policy that has moved from the one that answered."""
    steps = run(2, epochs=epochs)
    assert len(steps.judged) == 2 and len(steps.stepped) == 2 * epochs
    assert all(taken is steps.taken[index // epochs] for index, taken in enumerate(steps.stepped))
    moments = list(steps.learner.optimizer.state.values())
    assert moments and all(int(state["step"]) == 2 * epochs for state in moments)
    assert (steps.rows[0]["kl"] > 1e-9) == (epochs > 1)


def test_a_failed_reward_harms_its_own_answer_alone(run: Any) -> None:
    """The others' advantages are those of a smaller group; what failed is out of loss and figures."""
    steps, failed = run(2, failing=[5]), 5
    judged, taken = steps.judged[0], steps.taken[0]
    worth = judged.rewards.flatten()
    assert worth.isnan().nonzero().flatten().tolist() == [failed]
    others = [index for index in range(4, 8) if index != failed]
    mean, deviation = worth[others].mean(), worth[others].std()
    torch.testing.assert_close(taken.advantage[others], ((worth[others] - mean) / (deviation + 1e-4)).double())
    assert taken.advantage[failed] == 0 and not taken.mask[failed].any() and not taken.weight[failed].any()
    assert by_hand(judged.rewards[:1]) == pytest.approx(taken.advantage[:4].tolist(), abs=1e-5)
    assert steps.rows[0]["reward"] == pytest.approx(worth[worth.isfinite()].mean().item())
    assert [row["reward_failures"] for row in steps.rows] == [1, 0]
    assert all(math.isfinite(value) for row in steps.rows for value in row.values())


def test_rewards_that_all_fail_move_nothing(run: Any) -> None:
    steps = run(1, failing=range(24), kl=0.0)
    assert steps.rows[0]["reward_failures"] == 24
    assert steps.rows[0]["grad_norm"] == steps.rows[0]["loss"] == steps.rows[0]["useful"] == 0
