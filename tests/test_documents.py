"""Pre-training on rows of several documents that are kept apart: each learns what it learns alone.

Alone it is a row of its own in the package of the same spec that joins documents.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from dsc.compiler.driver import build, emit, planned
from dsc.compiler.passes.stages import LOSS
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk

Rows = list[list[int]]
ROWS: Rows = [[7, 1, 2, 20, 3, 1], [34], [1] * 30 + [4], [5, 29]]  # lengths of documents, 34 in a row
KERNELS = {"kernels": "tiny", "grouped kernels": "llama-3.1-8b", "window kernels": "mistral-7b"}
KERNELS["kernels in turn"] = "tiny-window"
"""As the kernels' references have it: of latents, of grouped queries, of a window, of a window in every other layer."""
NAMES = ("tiny", "two depths", "tiny-window", "minicpm3-4b", *KERNELS)
"""With experts, twice; in a window; with a tied head. Windows are of 8 tokens, less than many documents have."""


def spec_of(name: str, documents: str, **changes: Any) -> ModelSpec:
    spec = load("tiny" if name == "two depths" else KERNELS.get(name, name))
    data = (spec if spec.name.startswith("tiny") else shrunk(spec)).model_dump()
    if name == "window kernels":
        data["attention"]["window"] = 8
    if spec.name == "tiny-window":
        data["attention"]["sliding"]["window"] = 8
    if name == "two depths":
        data["mtp"]["depth"] = 2
        del data["ffn"]["moe"]["router"]["balance"]["sequence_aux_loss_alpha"]
    if name in KERNELS:
        data["cluster"] = {"kind": "h100", "nodes": 1}
    return ModelSpec.model_validate(data | {"training": {"documents": documents}} | changes)


@pytest.fixture(scope="module")
def package(emitted: Any) -> Callable[..., Any]:
    """Modules of the package of a spec, a text of theirs replaced by another."""

    def made(name: str, documents: str, file: str = "", text: str = "", by: str = "") -> Any:
        files = emit(build(spec_of(name, documents)))
        if file:
            assert text in files[file], text
            files[file] = files[file].replace(text, by)
        return emitted(files)

    return made


def numbered() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and numbers of the documents of ROWS, [B, S] each."""
    ids = torch.randint(1, 90, (len(ROWS), 35), generator=torch.Generator().manual_seed(0))
    documents = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in ROWS])
    labels = ids[:, 1:].clone()
    for row, lengths in enumerate(ROWS):
        labels[row, np.cumsum(lengths) - 1] = -100
    return ids[:, :-1], labels, documents


def drawn(module: Any) -> Any:
    """The model of a trainer, in float64, with weights large enough for attention to matter."""
    single = module("train.single").Single(torch.device("cpu"), torch.float64, 0, len(ROWS), len(ROWS))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in single.model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.08)
    return single


def learned(losses: dict[str, Tensor]) -> dict[str, float]:
    """Without the balance loss, which is of a row, whatever stands in it."""
    return {name: loss.item() for name, loss in losses.items() if name not in ("loss", "balance")}


def in_rows(module: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    single = drawn(module)
    losses = single.step(*numbered())
    return learned(losses), {name: weight.grad for name, weight in single.named_parameters()}


def alone(module: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Every document in a row of its own, weighed by its share of the labels of each depth."""
    single = drawn(module)
    tokens, labels, _ = numbered()
    names = module("train.stages").LOSSES
    kept = [index for index, name in enumerate(names) if name in ("main", "mtp")]
    depths = len(single.model.mtp) if "mtp" in names else 0
    totals = [sum(max(length - 1 - depth, 0) for row in ROWS for length in row) for depth in range(1 + depths)]
    counts = torch.tensor([[*totals, 1]], dtype=torch.float64)
    found: dict[str, float] = {}
    for row, lengths in enumerate(ROWS):
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            part = slice(end - length, end)
            behind = (0, 1 + depths)  # positions that no token of the document sees, and nothing is learned of
            own_tokens, own_labels = tokens[row : row + 1, part], labels[row : row + 1, part]
            losses = single.lent.model(pad(own_tokens, behind), pad(own_labels, behind, value=-100), counts)
            losses[kept].sum().backward()
            for name, loss in learned(dict(zip(names, losses, strict=True))).items():
                found[name] = found.get(name, 0.0) + loss
    return found, {name: weight.grad for name, weight in single.named_parameters()}


def apart(found: dict[str, float], expected: dict[str, float]) -> float:
    assert found.keys() == expected.keys()
    return max(abs(found[name] - expected[name]) / expected[name] for name in expected)


@pytest.mark.parametrize("name", NAMES)
def test_documents_in_rows_learn_what_they_learn_alone(name: str, package: Callable[..., Any]) -> None:
    """The main loss and multi-token prediction's; gradients too, where the balance loss has no part in them."""
    found, gradients = in_rows(package(name, "apart"))
    expected, own = alone(package(name, "joined"))
    assert apart(found, expected) <= 1e-11
    if "balance" not in package(name, "joined")("train.stages").LOSSES:
        for weight, gradient in gradients.items():
            torch.testing.assert_close(gradient, own[weight], rtol=1e-9, atol=1e-12, msg=weight)


FAULTS = {
    "boundaries off by one": (
        "train/document_layers.py",
        "documents != documents.roll(1, 1)",
        "documents != documents.roll(2, 1)",
    ),
    "boundaries one late": ("train/document_layers.py", "places >= starts", "places > starts"),
    "boundaries ignored": ("train/document_layers.py", "cummax(1).values.int()", "cummax(1).values.int() * 0"),
    "labels across a boundary": (
        "train/stages.py",
        "labels[:, 1:].where(documents[:, 1:] == documents[:, :-1], -100)",
        "labels[:, 1:]",
    ),
    "counts across a boundary": (
        "train/stages.py",
        "(valid[:, 1:] & (documents[:, 1:] == documents[:, :-1])).sum()",
        "valid[:, 1:].sum()",
    ),
    "the predictor sees over boundaries": ("train/stages.py", "starts[:, :-1]", "starts[:, :-1] * 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, package: Callable[..., Any]) -> None:
    found, _ = in_rows(package("tiny", "apart", *FAULTS[fault]))
    expected, _ = alone(package("tiny", "joined"))
    assert not apart(found, expected) <= 1e-6


TEXTS = ["def add(x, y):\n    return x + y\n", "caf\u00e9", "", "the quick brown fox " * 9, "z"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 5), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trainer(package: Callable[..., Any]) -> Any:
    return package("tiny", "apart")


def prepared(trainer: Any, lines: Path, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["data", "prepare", str(lines), "--out", str(folder), "--shard-tokens", "60"])
        trainer("train.data").main()
    return folder


def test_a_batch_says_of_which_document_each_token_is(trainer: Any, lines: Path, tmp_path: Path) -> None:
    """Every document ends with an id that says so: the numbers are counted from it, window by window, shard or not."""
    data = trainer("train.data")
    shards = prepared(trainer, lines, tmp_path / "shards")
    assert len(list(shards.glob("*.bin"))) > 5
    batches, of_text = (data.Batches(data.load_tokens(path, None), 4, 16, 7) for path in (shards, lines))
    for k in range(3 * batches.num_windows // 4):
        tokens, labels, documents = batches.batch(k, slice(0, 4))
        assert all(
            (a == b).all() for a, b in zip((tokens, labels, documents), of_text.batch(k, slice(0, 4)), strict=True)
        )
        half = batches.batch(k, slice(2, 4))  # of a rank that has the second half of the rows
        assert all((a[2:] == b).all() for a, b in zip((tokens, labels, documents), half, strict=True))
        ends = tokens == 256
        assert documents.diff(dim=1).equal(ends[:, :-1].long())
        assert (labels == -100).equal(ends)
        assert labels[:, :-1][~ends[:, :-1]].equal(tokens[:, 1:][~ends[:, :-1]])


def test_the_held_out_part_knows_its_documents(trainer: Any, lines: Path, tmp_path: Path) -> None:
    data = trainer("train.data")
    corpus = data.load_tokens(prepared(trainer, lines, tmp_path / "shards"), None)
    for part in data.split(corpus):
        ids = part.read(0, len(part))
        assert (np.diff(part.documents(0, len(part))) == (ids[:-1] == 256)).all()


def test_what_does_not_say_where_documents_begin_is_refused(trainer: Any, lines: Path, tmp_path: Path) -> None:
    data, shards = trainer("train.data"), prepared(trainer, lines, tmp_path / "shards")
    np.save(tmp_path / "ids.npy", np.arange(100))
    with pytest.raises(SystemExit, match=r"ids.npy: does not say where documents begin"):
        data.load_tokens(tmp_path / "ids.npy", None)
    broken = shards / "shard_00001.documents"
    content = broken.read_bytes()
    broken.write_bytes(content[:-3])
    with pytest.raises(SystemExit, match=r"shard_00001.documents: \d+ of its \d+ bytes are there"):
        data.load_tokens(shards, None)
    broken.write_bytes(bytes([content[0] ^ 1, *content[1:]]))
    with pytest.raises(SystemExit, match=r"not as they were written: shard_00001.documents;"):
        trainer("train.shards").check_sums(shards)
    index = json.loads((shards / "index.json").read_text())
    for shard in index["shards"]:
        del shard["documents"]
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit, match="prepared before shards said where documents begin"):
        data.load_tokens(shards, None)


@pytest.mark.parametrize("kind", ["cpu", "h100"])
def test_the_plan_prices_what_the_step_runs(kind: str) -> None:
    """At the upper bound, a row of a single document, for no plan knows the data."""
    cluster = {"kind": kind, "nodes": 1} if kind == "h100" else {"kind": kind, "nodes": 2}
    spec = spec_of("tiny", "apart", cluster=cluster)
    timed, emitted_step = planned(spec)[0], build(spec).step.graph
    for key in ("LatentAttention.forward", "MoeLayer.forward"):
        assert [n.op for n in timed.blocks[key].nodes()] == [n.op for n in emitted_step.blocks[key].nodes()]
    joined = planned(spec_of("tiny", "joined", cluster=cluster))[0]
    sizes = {"B": 2, "S": 4096}
    assert timed.flops(LOSS).value(sizes) == joined.flops(LOSS).value(sizes)
