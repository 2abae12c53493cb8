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
from dsc.compiler.hf import import_path
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SHARD_BYTES = 300_000
EXPORT = ("-m", "small.train.export", "--checkpoint", "run", "--shard-bytes", str(SHARD_BYTES))


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


@pytest.fixture(scope="module")
def quantized_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek-V3's kinds of layers in FP8, MTP's too, with blocks that are cut short; a step, exported twice."""
    folder = tmp_path_factory.mktemp("quantized")
    data = load("deepseek-v3").model_dump()
    data |= {"name": "small", "vocab_size": 256, "hidden_size": 192, "cluster": None}
    data["layers"] = [{"repeat": 1, "ffn": kind} for kind in ("dense", "moe")]
    data["attention"] |= {"num_attention_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64}
    data["ffn"]["dense"]["intermediate_size"] = 160
    moe = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    data["ffn"]["moe"] |= {**moe, "router": {**data["ffn"]["moe"]["router"], "n_group": 2, "topk_group": 1}}
    spec = ModelSpec.model_validate(data)
    write(emit(build(spec)), folder / "small")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 60)
    sizes = ("--steps", "1", "--batch-size", "2", "--sequence-length", "16")
    run(folder, "-m", "small.train.train", "--data", "text.txt", "--metrics", "m.jsonl", "--checkpoint", "run", *sizes)
    for dtype in ("float8", "bfloat16"):
        run(folder, *EXPORT, "--out", dtype, "--dtype", dtype)
    return folder


def quantized_as_published(weight: torch.Tensor, block: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Block by block, as DeepSeek-V3's README_WEIGHTS.md has it."""
    rows, columns = (-(-size // block) for size in weight.shape)
    codes, scale = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            place = slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block)
            scale[row, column] = weight[place].abs().max() / 448
            codes[place] = (weight[place] * (1 / scale[row, column])).to(torch.float8_e4m3fn)
    return codes, scale


def test_float8_is_stored_as_deepseek_v3_is(quantized_run: Path, out: str = "float8") -> None:
    """Every projection of a layer, MTP's too, as codes and a float32 number for each block; all else in bfloat16."""
    narrow, wide = tensors(quantized_run / out), tensors(quantized_run / "bfloat16")
    scales = {name for name in narrow if name.endswith("_scale_inv")}
    assert narrow.keys() - scales == wide.keys()
    layers = {name for name in wide if "_proj" in name and "eh_proj" not in name}
    assert scales == {f"{name}_scale_inv" for name in layers} and any(".layers.2." in name for name in layers)
    for name, tensor in wide.items():
        if name in layers:
            codes, scale = quantized_as_published(tensor.float())
            assert torch.equal(narrow[name].float(), codes.float()), name
            assert torch.equal(narrow[f"{name}_scale_inv"], scale), name
        else:
            assert torch.equal(narrow[name], tensor), name


def test_float8_is_read_back_bit_for_bit(quantized_run: Path, package_at: Any) -> None:
    package = package_at(quantized_run / "small")
    model = package("model").Model()
    package("checkpoint").load_hf(model, quantized_run / "float8")
    found, stored = dict(package("checkpoint").named_tensors(model)), tensors(quantized_run / "float8")
    for name in (name.removesuffix("_scale_inv") for name in stored if name.endswith("_scale_inv")):
        scale = stored[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
        rows, columns = stored[name].shape
        assert torch.equal(found[name].float(), stored[name].float().mul(scale[:rows, :columns])), name
    config = json.loads((quantized_run / "float8/config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    assert "kind: fp8_block" in import_path(quantized_run / "float8")


@pytest.mark.slow
def test_a_scale_of_the_wrong_block_is_caught(quantized_run: Path) -> None:
    path = quantized_run / "small/train/export.py"
    right = path.read_text()
    path.write_text(right.replace("scale[:, 0, :, 0].contiguous()", "scale[:, 0, :, 0].roll(1, 0)"))
    run(quantized_run, *EXPORT, "--out", "wrong", "--dtype", "float8")
    with pytest.raises(AssertionError):
        test_float8_is_stored_as_deepseek_v3_is(quantized_run, "wrong")
    path.write_text(right)
