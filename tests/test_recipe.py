"""The recipe of training, against formulas: what the optimizer does, at which rate, on which tokens in which order."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsc.compiler.driver import build, emit
from dsc.spec.loader import load

SEQUENCE, BATCH = 16, 4
TRAINED, HELD = 950, 50  # tokens; ids below SEEN are in the first part alone
SEEN = 48
WINDOWS = (TRAINED - 1) // SEQUENCE


@pytest.fixture(scope="module")
def package(emitted: Any, shrunk: Any) -> Any:
    return emitted(emit(build(shrunk(load("tiny")))))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens whose last twentieth has ids of its own."""
    drawn = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(path, np.concatenate((drawn.integers(0, SEEN, TRAINED), drawn.integers(SEEN, 96, HELD))).astype(np.uint16))
    return path


def test_a_step_is_adamw_of_the_report(package: Any) -> None:
    """DeepSeek-V3, section 4.2: betas 0.9 and 0.95, a decay of 0.1; decoupled (arXiv 1711.05101), matrices alone."""
    drawn = torch.Generator().manual_seed(0)
    start = {"matrix": torch.randn(3, 4, generator=drawn), "vector": torch.randn(5, generator=drawn)}
    weights = {name: nn.Parameter(value.double()) for name, value in start.items()}
    optimizer = package("train.optimizer").make_optimizer(weights.items(), 0.1)
    expected = {name: value.double() for name, value in start.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    for step in range(1, 6):
        for name, weight in weights.items():
            gradient = torch.randn(weight.shape, generator=drawn).double()
            weight.grad = gradient
            first, second = moments[name]
            first = 0.9 * first + 0.1 * gradient
            second = 0.95 * second + 0.05 * gradient**2
            moments[name] = first, second
            change = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            decay = 0.1 * expected[name] if name == "matrix" else 0
            expected[name] = expected[name] - 0.01 * (change + decay)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        for name, weight in weights.items():
            torch.testing.assert_close(weight.data, expected[name], rtol=1e-12, atol=1e-12)


def test_moments_lie_in_bfloat16_where_the_spec_says_so(emitted: Any, shrunk: Any) -> None:
    """Section 3.3.3 of the report: each step as wide as the weights, from moments that were rounded to the nearest."""
    module = emitted(emit(build(shrunk(load("deepseek-v3")))))("train.optimizer")
    drawn = torch.Generator().manual_seed(0)
    start = torch.randn(16, 16, generator=drawn).double()
    weight = nn.Parameter(start.clone())
    optimizer = module.make_optimizer([("matrix", weight)], 0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    expected, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 6):
        weight.grad = torch.randn(weight.shape, generator=drawn).double()
        first = 0.9 * first + 0.1 * weight.grad
        second = 0.95 * second + 0.05 * weight.grad**2
        change = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        expected = expected - 0.01 * (change + 0.1 * expected)
        first, second = (moment.bfloat16().double() for moment in (first, second))
        optimizer.step()
        torch.testing.assert_close(weight.data, expected, rtol=1e-9, atol=1e-9)
    assert {optimizer.state[weight][name].dtype for name in module.MOMENTS} == {torch.bfloat16}


def test_the_rate_rises_stays_and_falls(package: Any) -> None:
    """Ten steps: up in three, down along half a cosine in the last four, to a tenth at the very last."""
    rate = package("train.optimizer").learning_rate
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2 for share in (1 / 4, 2 / 4, 3 / 4, 1)]
    expected = [2 / 3, 4 / 3, 2, 2, 2, 2, *(2 * share for share in falling)]
    assert [rate(step, 10, 2.0, 3, 4, 0.1) for step in range(1, 11)] == pytest.approx(expected)
    assert [rate(step, 3, 2.0, 0, 0, 0.1) for step in (1, 2, 3)] == [2.0] * 3


class Run:
    """A run of the trainer in this process, and what it was fed."""

    def __init__(self, package: Any, folder: Path, *arguments: object) -> None:
        self.trained: list[Tensor] = []
        self.evaluated: list[Tensor] = []
        self.graded: list[tuple[Tensor, Tensor]] = []
        metrics = folder / "metrics.jsonl"
        sizes = ("--batch-size", BATCH, "--sequence-length", SEQUENCE, "--metrics", metrics, "--dtype", "float32")
        trainer, single = package("train.train"), package("train.single").Single
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *map(str, (*sizes, *arguments))])
            self._watch(patch, single, "step", self.trained)
            self._watch(patch, single, "evaluate", self.evaluated)
            trainer.train(trainer.parse_arguments())
        torch.use_deterministic_algorithms(False)
        self.records = [json.loads(line) for line in metrics.read_text().splitlines()]

    def _watch(self, patch: pytest.MonkeyPatch, single: Any, name: str, seen: list[Tensor]) -> None:
        original = getattr(single, name)

        def watched(layout: Any, tokens: Tensor, labels: Tensor, *more: Any) -> Any:
            seen.append(torch.cat((tokens, labels[:, -1:]), 1))
            self.graded.append((tokens, labels))
            return original(layout, tokens, labels, *more)

        patch.setattr(single, name, watched)

    def windows(self, first: int, last: int) -> list[tuple[int, ...]]:
        """What was trained on, in order."""
        rows = torch.cat(self.trained)[first:last]
        return [tuple(row) for row in rows.tolist()]


@pytest.fixture(scope="module")
def two_epochs(package: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    steps = -(-2 * WINDOWS // BATCH)
    return Run(package, tmp_path_factory.mktemp("run"), "--data", data, "--steps", steps, "--eval-every", 10)


def test_what_is_held_out_is_never_trained_on(two_epochs: Run) -> None:
    trained, evaluated = torch.cat(two_epochs.trained), torch.cat(two_epochs.evaluated)
    assert trained.max() < SEEN <= evaluated.min()


def test_a_label_is_the_token_that_follows(two_epochs: Run, data: Path) -> None:
    tokens = torch.from_numpy(np.load(data).astype(np.int64)).unfold(0, SEQUENCE + 1, 1)
    there = {tuple(window) for window in tokens.tolist()}
    for given, labels in two_epochs.graded:
        assert torch.equal(labels[:, :-1], given[:, 1:])
        assert {tuple(row) for row in torch.cat((given[:, :1], labels), 1).tolist()} <= there


def test_an_epoch_has_every_window_once_in_an_order_of_its_own(two_epochs: Run) -> None:
    first, second = two_epochs.windows(0, WINDOWS), two_epochs.windows(WINDOWS, 2 * WINDOWS)
    assert len(set(first)) == WINDOWS
    assert set(first) == set(second)
    assert first != second


def test_the_seed_is_the_order(package: Any, data: Path, tmp_path: Path, two_epochs: Run) -> None:
    runs = [Run(package, tmp_path / str(seed), "--data", data, "--steps", 4, "--seed", seed) for seed in (0, 1)]
    same, other = (run.windows(0, 4 * BATCH) for run in runs)
    assert same == two_epochs.windows(0, 4 * BATCH) != other


def test_gradients_are_clipped(package: Any, data: Path, tmp_path: Path) -> None:
    """AdamW divides a gradient by its own size, so that clipping shows where it falls below the epsilon beside it."""
    common = ("--data", data, "--steps", 3, "--eval-every", 3, "--warmup-steps", 0, "--weight-decay", 0)
    choices = {"still": ("--learning-rate", 0), "clipped": ("--grad-clip", 1e-14), "free": ("--grad-clip", 0)}
    runs = {name: Run(package, tmp_path / name, *common, *flags) for name, flags in choices.items()}
    found = {name: run.records[-1]["eval_loss"] for name, run in runs.items()}
    assert found["clipped"] == pytest.approx(found["still"], abs=1e-5)
    assert abs(found["free"] - found["still"]) > 1e-3
    assert runs["clipped"].records[0]["grad_norm"] == pytest.approx(runs["free"].records[0]["grad_norm"]), "as it was"
