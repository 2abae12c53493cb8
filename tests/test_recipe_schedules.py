"""What of the recipe changes during pre-training, against plain computations: the weight of MTP's loss."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dsc.compiler.driver import build, emit
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SEQUENCE, BATCH, STEPS = 16, 4, 6
STEP = SEQUENCE * BATCH  # tokens
FLAGS = ("--sequence-length", SEQUENCE, "--dtype", "float64", "--warmup-steps", 0, "--learning-rate", 1e-2)
LATER = {"after_tokens": 3 * STEP - 1, "loss_weight": 0.05}  # from the fourth step on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 96, 2000).astype(np.uint16))
    return path


def changed(spec: ModelSpec, **sections: dict[str, Any]) -> ModelSpec:
    """A spec with other values in some of its sections."""
    found = spec.model_dump()
    return ModelSpec.model_validate(found | {name: found[name] | values for name, values in sections.items()})


@pytest.fixture(scope="module")
def weighed(emitted: Any, shrunk: Any) -> Any:
    return emitted(emit(build(changed(shrunk(load("tiny")), mtp={"later": LATER}))))


def run(package: Any, folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """A run of the trainer in this process: the objects of its log."""
    metrics = folder / "metrics.jsonl"
    trainer = package("train.train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, (*FLAGS, "--metrics", metrics, *arguments))])
        trainer.train(trainer.parse_arguments())
    torch.use_deterministic_algorithms(False)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_the_weight_changes_with_the_first_step_that_begins_behind(weighed: Any) -> None:
    """As in DeepSeek-V3, section 4.2: so many tokens with one weight, the rest with the other."""
    weight = weighed("train.optimizer").mtp_loss_weight
    ends = LATER["after_tokens"]
    assert [weight(tokens) for tokens in (0, ends - 1, ends, 10**15)] == [0.3, 0.3, 0.05, 0.05]


@pytest.fixture(scope="module")
def plain_rows(weighed: Any, data: Path) -> list[list[float]]:
    """Model.loss put together again with the schedule's weights: loss, MTP's part and gradient norm of each step."""
    package, batches = weighed, weighed("train.data")
    train = batches.split(batches.load_tokens(data, None))[0]
    drawn = batches.Batches(train, BATCH, SEQUENCE, 0)
    model = package("train.single").Single(torch.device("cpu"), torch.float64, 0, BATCH, BATCH).model
    optimizer = package("train.optimizer").make_optimizer(model.named_parameters(), 0.1)
    rows = []
    for step in range(STEPS):
        tokens, labels = drawn.batch(step, slice(0, BATCH))
        _, parts = model.loss(tokens, labels)
        mtp = parts["mtp"] / 0.3 * (0.3 if step < 3 else 0.05)
        loss = parts["main"] + mtp + parts["balance"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        optimizer.zero_grad()
        model.update_selection_bias()
        rows.append([loss.item(), mtp.item(), norm.item()])
    return rows


def furthest(records: list[dict[str, Any]], rows: list[list[float]]) -> float:
    found = [[record[name] for name in ("loss", "mtp", "grad_norm")] for record in records]
    return float(np.max(np.abs(np.array(found) / np.array(rows) - 1)))


@pytest.fixture(scope="module")
def weighed_run(weighed: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(weighed, tmp_path_factory.mktemp("run"), "--data", data, "--steps", STEPS, "--batch-size", BATCH)


def test_losses_are_weighed_as_in_a_plain_loop(
    weighed_run: list[dict[str, Any]], plain_rows: list[list[float]]
) -> None:
    assert [record["mtp_loss_weight"] for record in weighed_run] == [0.3] * 3 + [0.05] * 3
    assert furthest(weighed_run, plain_rows) < 1e-12


FAULTS = {
    "a step late": ("train/train.py", "(step - 1) * self", "(step - 2) * self"),
    "never handed on": ("train/train.py", "self.layout.mtp_weight = weight", "pass"),
    "not in the loss": ("train/stages.py", "mtp_loss * (mtp_weight[0] / MTP_DEPTH)", "mtp_loss * (0.3 / MTP_DEPTH)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(
    fault: str, emitted: Any, shrunk: Any, data: Path, tmp_path: Path, plain_rows: list[list[float]]
) -> None:
    path, line, wrong = FAULTS[fault]
    files = emit(build(changed(shrunk(load("tiny")), mtp={"later": LATER})))
    (file,) = (name for name in files if name.endswith(path))
    assert line in files[file]
    wrong_package = emitted({**files, file: files[file].replace(line, wrong)})
    records = run(wrong_package, tmp_path, "--data", data, "--steps", STEPS, "--batch-size", BATCH)
    assert furthest(records, plain_rows) > 1e-3


def test_a_run_goes_on_with_the_weight_of_its_step(
    weighed: Any, data: Path, tmp_path: Path, weighed_run: list[dict[str, Any]]
) -> None:
    common = ("--data", data, "--batch-size", BATCH, "--checkpoint", tmp_path / "kept")
    run(weighed, tmp_path, *common, "--steps", 2)
    records = run(weighed, tmp_path, *common, "--steps", STEPS, "--resume")
    same = ("step", "loss", "mtp", "grad_norm", "mtp_loss_weight")
    assert [[record[name] for name in same] for record in records] == [
        [record[name] for name in same] for record in weighed_run
    ]


def test_without_a_later_weight_no_line_speaks_of_it(shrunk: Any) -> None:
    files = emit(build(shrunk(load("tiny"))))
    found = [name for name, text in files.items() if "mtp_weight" in text or "MTP_LATER" in text]
    assert not found


def test_no_other_file_changes(shrunk: Any) -> None:
    """Not the model, nor what generates."""
    spec = shrunk(load("tiny"))
    before, after = emit(build(spec)), emit(build(changed(spec, mtp={"later": LATER})))
    found = {name.removeprefix("tiny/") for name, text in after.items() if before[name] != text}
    trainer = {f"train/{name}.py" for name in ("optimizer", "single", "stages", "train")}
    assert found - {"dsc.lock.json"} == {"dims.py", *trainer}
