"""A run's checkpoint as safetensors under Hugging Face names, written by one process or several."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SHARD_BYTES = 300_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package, and the checkpoint of a run of one process."""
    folder = tmp_path_factory.mktemp("export")
    data = load("tiny").model_dump()
    data |= {"hidden_size": 64, "layers": [{"repeat": 1, "ffn": kind} for kind in ("dense", "moe")]}
    write(emit(build(ModelSpec.model_validate(data))), folder / "small")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 60)
    sizes = ("--steps", "3", "--batch-size", "4", "--sequence-length", "16")
    files = ("--data", "text.txt", "--metrics", "m.jsonl", "--checkpoint", "run")
    run(folder, "-m", "small.train.train", *files, *sizes)
    return folder


def run(folder: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stdout and "Traceback" not in done.stderr, done.stderr


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All of a folder, as its index says."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="pt") as shard:
            found[name] = shard.get_tensor(name)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_is_what_save_hf_writes(folder: Path, dtype: str, package_at: Any) -> None:
    """The trainer's own safetensors, which one process writes from its model, are the other side."""
    out, saved = folder / dtype, folder / "run/step_000003"
    arguments = ("--checkpoint", "run", "--out", dtype, "--dtype", dtype, "--shard-bytes", str(SHARD_BYTES))
    run(folder, "-m", "small.train.export", *arguments)
    exported, expected = tensors(out), load_file(saved / "model.safetensors")
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        wide = "e_score_correction_bias" in name
        assert torch.equal(exported[name], tensor if wide else tensor.to(getattr(torch, dtype))), name
    assert all(path.stat().st_size < 1.2 * SHARD_BYTES for path in out.glob("*.safetensors"))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    assert {path.name for path in saved.glob("*.json")} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_two_processes_write_the_same(folder: Path) -> None:
    common = ("small.train.export", "--checkpoint", "run", "--shard-bytes", str(SHARD_BYTES), "--out")
    run(folder, "-m", *common, "one")
    run(folder, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", *common, "two")
    one, two = tensors(folder / "one"), tensors(folder / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert sorted(path.name for path in (folder / "one").iterdir()) == sorted(
        path.name for path in (folder / "two").iterdir()
    )
