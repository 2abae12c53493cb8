"""What of the recipe changes during pre-training, against plain computations: MTP's weight and the batch."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dsc.compiler.driver import build, emit
from dsc.compiler.planner.layout.pins import refused_pins
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SEQUENCE, BATCH, STEPS = 16, 4, 6
STEP = SEQUENCE * BATCH  # tokens
FLAGS = ("--sequence-length", SEQUENCE, "--dtype", "float64", "--warmup-steps", 0, "--learning-rate", 1e-2)
RAMP = {"start": 2, "increment": 2, "tokens": 2 * STEP - 1}  # sizes of 2, 4, 6 and so on
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


def plain(package: Any, data: Path, sizes: list[int], weights: list[float]) -> list[list[float]]:
    """Steps of so many sequences, one after the other, on Model.loss put together again with these weights of MTP: the
    loss, MTP's part and the gradient norm of each."""
    batches = package("train.data")
    train = batches.split(batches.load_tokens(data, None))[0]
    sequences = batches.Batches(train, 1, SEQUENCE, 0)
    model = package("train.single").Single(torch.device("cpu"), torch.float64, 0, BATCH, BATCH).model
    optimizer = package("train.optimizer").make_optimizer(model.named_parameters(), 0.1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    rows, seen = [], 0
    for size, weight in zip(sizes, weights, strict=True):
        drawn = [sequences.batch(index, slice(0, 1)) for index in range(seen, seen + size)]
        seen += size
        _, parts = model.loss(*(torch.cat(some) for some in zip(*drawn, strict=True)))
        mtp = parts["mtp"] / 0.3 * weight
        loss = parts["main"] + mtp + parts["balance"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update_selection_bias()
        rows.append([loss.item(), mtp.item(), norm.item()])
    return rows


@pytest.fixture(scope="module")
def plain_rows(weighed: Any, data: Path) -> list[list[float]]:
    return plain(weighed, data, [BATCH] * STEPS, [0.3] * 3 + [0.05] * 3)


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


def growing(spec: ModelSpec, batch: int = 6, **ramp: int) -> ModelSpec:
    return changed(
        spec, training={"batch_ramp": {**RAMP, **ramp}}, workload={"global_batch": batch}, mtp={"later": LATER}
    )


@pytest.fixture(scope="module")
def grown(emitted: Any, shrunk: Any) -> Any:
    return emitted(emit(build(growing(shrunk(load("tiny"))))))


SIZES = [2, 2, 4, 6, 6, 6]  # 127 tokens in two parts: 2 steps of 32 tokens, 1 of 64
WEIGHTS = [0.3] * 4 + [0.05] * 2  # 32, 64, 128, 224 tokens are seen when steps 2, 3, 4 and 5 begin


@pytest.fixture(scope="module")
def grown_run(grown: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(grown, tmp_path_factory.mktemp("run"), "--data", data, "--steps", STEPS)


@pytest.fixture(scope="module")
def grown_rows(grown: Any, data: Path) -> list[list[float]]:
    return plain(grown, data, SIZES, WEIGHTS)


def test_a_step_of_a_ramp_is_that_of_a_plain_loop(
    grown_run: list[dict[str, Any]], grown_rows: list[list[float]]
) -> None:
    assert [record["batch_size"] for record in grown_run] == SIZES
    assert [record["tokens"] for record in grown_run] == (np.cumsum(SIZES) * SEQUENCE).tolist()
    assert [record["mtp_loss_weight"] for record in grown_run] == WEIGHTS
    assert furthest(grown_run, grown_rows) < 1e-12


@pytest.mark.parametrize(("batch", "start", "increment", "tokens"), [(6, 2, 2, 127), (15, 3, 4, 4001), (9, 1, 8, 16)])
def test_each_size_has_its_part_of_the_tokens(
    batch: int, start: int, increment: int, tokens: int, emitted: Any, shrunk: Any
) -> None:
    """Step by step: a size is over when it has had its part; from then on a step has all of its batch."""
    ramp = {"start": start, "increment": increment, "tokens": tokens}
    module = emitted(emit(build(growing(shrunk(load("tiny")), batch, **ramp))))("train.ramp")
    batches = module.GrowingBatches(np.zeros(2000, np.uint16), batch, SEQUENCE, 0)
    part = tokens / ((batch - start) // increment)
    size, had, expected = start, 0, []
    while len(expected) < 300:
        if size < batch and had >= part:
            size, had = size + increment, 0
            continue
        expected.append(size)
        had += size * SEQUENCE
    assert [batches.size(k) for k in range(300)] == expected
    assert [batches.before(k) for k in range(301)] == [0, *np.cumsum(expected).tolist()]


def test_the_ramp_of_the_report(grown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3,072 to 15,360 sequences of 4,096 tokens: in 469B tokens, and at most a step more of each size."""
    ramp = grown("train.ramp")
    for name, value in {"RAMP_START": 3072, "RAMP_INCREMENT": 1536, "RAMP_TOKENS": 469_000_000_000}.items():
        monkeypatch.setattr(ramp, name, value)
    batches = ramp.GrowingBatches(np.zeros(10_000, np.uint16), 15360, 4096, 0)
    last = next(k for k in range(20_000) if batches.size(k) == 15360)
    assert batches.size(0) == 3072 and batches.size(10**6) == 15360
    assert 0 <= batches.before(last) * 4096 - 469e9 < 4096 * sum(range(3072, 15360, 1536))


GROWING_FAULTS = {
    "each batch from the start of its own size": (
        "train/data.py",
        "self.before(k), self.before(k + 1)",
        "k * 6, k * 6 + 2",
    ),
    "a step late": ("train/train.py", "take(self.batches.size(step - 1))", "take(self.batches.size(max(step - 2, 0)))"),
    "no ramp": ("train/ramp.py", "range(RAMP_START, self", "range(self.batch_size, self"),
}


@pytest.mark.parametrize("fault", GROWING_FAULTS)
def test_a_planted_fault_of_the_ramp_is_found(
    fault: str, emitted: Any, shrunk: Any, data: Path, tmp_path: Path, grown_rows: list[list[float]]
) -> None:
    path, line, wrong = GROWING_FAULTS[fault]
    files = emit(build(growing(shrunk(load("tiny")))))
    (file,) = (name for name in files if name.endswith(path))
    assert line in files[file]
    records = run(
        emitted({**files, file: files[file].replace(line, wrong)}), tmp_path, "--data", data, "--steps", STEPS
    )
    assert furthest(records, grown_rows) > 1e-3


def test_a_run_goes_on_in_the_middle_of_its_ramp(
    grown: Any, data: Path, tmp_path: Path, grown_run: list[dict[str, Any]]
) -> None:
    common = ("--data", data, "--checkpoint", tmp_path / "kept")
    run(grown, tmp_path, *common, "--steps", 2)
    records = run(grown, tmp_path, *common, "--steps", STEPS, "--resume")
    same = ("step", "loss", "mtp", "grad_norm", "mtp_loss_weight", "batch_size", "tokens")
    assert [[record[name] for name in same] for record in records] == [
        [record[name] for name in same] for record in grown_run
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(("--batch-size", 7), "grow from 2 by 2"), (("--micro-batch", 4), "--micro-batch 4: does not divide a step of 6")],
)
def test_what_a_ramp_cannot_do_is_said_in_a_line(
    arguments: tuple[object, ...], part: str, grown: Any, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=part):
        run(grown, tmp_path, "--data", data, "--steps", 1, *arguments)


def test_without_a_ramp_no_line_speaks_of_it(shrunk: Any) -> None:
    files = emit(build(shrunk(load("tiny"))))
    assert not [
        name for name, text in files.items() if "RAMP_" in text or "layout.take" in text or name.endswith("ramp.py")
    ]


def test_a_layout_that_cannot_share_a_step_of_the_ramp_is_refused(shrunk: Any) -> None:
    """Two ranks cannot share five sequences."""
    spec = growing(shrunk(load("tiny")), 8, start=5, increment=3)
    pins = {"pp": 1, "dp": 2, "cp": 1, "tp": 1, "ep": 1, "micro_batch": 1}
    placed = ModelSpec.model_validate(spec.model_dump() | {"cluster": {"kind": "cpu", "nodes": 2}, "placement": pins})
    assert "dp x micro_batch = 2 x 1 = 2 does not divide a batch of 5" in str(refused_pins(placed))
