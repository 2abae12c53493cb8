"""Shards of tokens: prepared from text, JSONL and parquet, read as one array, and named when they are broken."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load

TEXTS = ["def add(x, y):\n    return x + y\n", "caf\u00e9", "", "the quick brown fox " * 9]
IDS = [[*text.encode(), 256] for text in TEXTS]  # one id per byte, and one that ends a document


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> ModuleType:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write(emit(build(load("tiny"))), folder)
    module: ModuleType = package_at(folder)("train.data")
    return module


def run(data: ModuleType, *args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["data", *map(str, args)])
        data.main()


def refusal(data: ModuleType, *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run(data, *args)
    return str(stop.value)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 3}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def shards(data: ModuleType, lines: Path, tmp_path: Path) -> Path:
    """Two: the third document is empty but for its end, and no shard ends within a document."""
    run(data, "prepare", lines, "--out", tmp_path / "shards", "--shard-tokens", 30)
    return tmp_path / "shards"


def test_shards_are_the_documents_one_after_the_other(data: ModuleType, shards: Path) -> None:
    whole = np.concatenate(IDS)
    corpus = data.load_tokens(shards, None)
    assert len(corpus) == len(whole) and [len(array) for array in corpus.arrays] == [33, 188]
    rng = np.random.default_rng(0)
    for _ in range(200):
        start, end = sorted(rng.integers(0, len(whole) + 1, 2))
        if start < end:
            assert (corpus.read(start, end) == whole[start:end]).all()
            inner, outer = sorted(rng.integers(0, end - start + 1, 2))
            if inner < outer:
                assert (corpus.part(start, end).read(inner, outer) == whole[start:end][inner:outer]).all()


def test_batches_do_not_depend_on_how_tokens_are_stored(data: ModuleType, shards: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.concatenate(IDS))
    one, two = (data.Batches(data.load_tokens(path, None), 4, 16, 7) for path in (shards, tmp_path / "ids.npy"))
    assert one.digest() == two.digest()
    for k in range(9):
        whole = one.batch(k, slice(0, 4))
        assert all((a == b).all() for a, b in zip(whole, two.batch(k, slice(0, 4)), strict=True))
        half = two.batch(k, slice(2, 4))  # of a rank that has the second half of the rows
        assert all((a[2:] == b).all() for a, b in zip(whole, half, strict=True))


def test_parquet_holds_the_same(data: ModuleType, shards: Path, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "texts.parquet")
    run(data, "prepare", tmp_path / "texts.parquet", "--out", tmp_path / "other", "--field", "body")
    assert (data.load_tokens(tmp_path / "other", None).read(0, 221) == np.concatenate(IDS)).all()
    assert "no readable texts in a column 'text'" in refusal(
        data, "prepare", tmp_path / "texts.parquet", "--out", tmp_path / "third"
    )


def test_without_pyarrow_the_cure_is_said(data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "texts.parquet").write_bytes(b"PAR1")
    assert "pip install pyarrow" in refusal(data, "prepare", tmp_path / "texts.parquet", "--out", tmp_path / "shards")


def test_a_truncated_shard_is_named(data: ModuleType, shards: Path) -> None:
    broken = shards / "shard_00001.bin"
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(SystemExit, match=r"shard_00001.bin: 374 of its 376 bytes are there"):
        data.load_tokens(shards, None)


def test_a_corrupt_shard_is_named(data: ModuleType, shards: Path) -> None:
    run(data, "check", shards)
    path = shards / "shard_00001.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    said = refusal(data, "check", shards)
    assert "shard_00001.bin" in said and "shard_00000.bin" not in said


def test_what_cannot_be_prepared_is_said(data: ModuleType, shards: Path, lines: Path, tmp_path: Path) -> None:
    with lines.open("a") as file:
        file.write('{"id": 4}\n')
    assert "texts.jsonl, line 5: no JSON object with a text" in refusal(
        data, "prepare", lines, "--out", tmp_path / "other"
    )
    assert not (tmp_path / "other" / "index.json").exists()  # so nobody takes the part for the whole
    assert "holds shards already" in refusal(data, "prepare", lines, "--out", shards)
    (shards / "index.json").write_text("{}")
    with pytest.raises(SystemExit, match="is no index of shards"):
        data.load_tokens(shards, None)
