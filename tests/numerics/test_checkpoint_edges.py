"""Checkpoint folders that are not as they should be: one save is loaded, whole, or an error says what is wrong."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.families import Case
from numerics.harness import SINGLE, Compile, OracleOf, Package, Tensors, imported_text, random_model
from numerics.specs import MTP, spec_text
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

INDEX = "model.safetensors.index.json"
FP8 = spec_text(
    hidden_size=136,
    precision={
        "parameters": "fp32",
        "linear": {"kind": "fp8_block", "weight_block": [16, 24], "activation_block": [1, 24]},
    },
)
TIED = spec_text(tie_word_embeddings=True)
WITH_MTP = spec_text(mtp={**MTP, "depth": 2})
SIZES = [10**9, 60_000, 20_000]  # one file, some shards, more shards


def refused(package: Package, folder: Path) -> list[str]:
    """The lines of the ValueError that a folder ends in, with the model as it was before."""
    model = random_model(package, torch.float32, seed=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        package.checkpoint.load_hf(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value).splitlines()


def holds(package: Package, folder: Path, model: nn.Module) -> bool:
    expected = package.tensors(model)
    return all(torch.equal(tensor, expected[name]) for name, tensor in package.tensors(package.load(folder)).items())


def edited(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Other tensors in the one file of a folder."""
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def saved(compiled: Compile, text: str, folder: Path, **options: Any) -> Package:
    package = compiled(text)
    package.checkpoint.save_hf(random_model(package, torch.float32), folder, **options)
    return package


# --- a save replaces the one before


@pytest.mark.parametrize("second", SIZES)
@pytest.mark.parametrize("first", SIZES)
def test_what_was_saved_last_is_loaded(first: int, second: int, compiled: Compile, tmp_path: Path) -> None:
    package = compiled(spec_text())
    old, new = random_model(package, torch.float32), random_model(package, torch.float32, seed=2)
    package.checkpoint.save_hf(old, tmp_path, shard_bytes=first)
    package.checkpoint.save_hf(new, tmp_path, shard_bytes=second)
    assert holds(package, tmp_path, new)
    left = {path.name for path in tmp_path.iterdir()}
    package.checkpoint.save_hf(new, tmp_path / "fresh", shard_bytes=second)
    assert left == {path.name for path in (tmp_path / "fresh").iterdir()}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(theirs.lm_head.weight, new.lm_head.weight)
    assert torch.equal(theirs.model.norm.weight, new.norm.weight)


def test_a_save_replaces_one_of_transformers(oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    oracle = oracle_of(Case("llama", "base"))
    package = compiled(imported_text(oracle))
    oracle.model.save_pretrained(tmp_path, max_shard_size="20KB")
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, tmp_path)
    assert holds(package, tmp_path, model) and [path.name for path in tmp_path.glob("model*")] == [SINGLE]


def test_files_of_others_stay(compiled: Compile, tmp_path: Path) -> None:
    others = ("notes.txt", "optimizer.pt", "adapter.safetensors", "model-00001-of-00002.safetensors.bak")
    for name in others:
        (tmp_path / name).write_text("mine")
    saved(compiled, spec_text(), tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in others)


CALLS = ((os, "replace"), (os, "unlink"), (shutil, "rmtree"))


def killed_save(package: Package, model: nn.Module, folder: Path, size: int, after: int) -> bool:
    """Whether a save in a process of its own was ended, without any cleaning up, after so many steps on the folder."""
    process = os.fork()
    if process == 0:
        steps = iter(range(after + 1))

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                if next(steps, None) is None:
                    os._exit(1)
                return call(*arguments, **options)

            return step

        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        package.storage.save_file = counted(package.storage.save_file)
        try:
            package.checkpoint.save_hf(model, folder, shard_bytes=size)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0


@pytest.mark.parametrize("second", SIZES[:2])
@pytest.mark.parametrize("first", SIZES[:2])
def test_a_killed_save_leaves_one_checkpoint_or_none(
    first: int, second: int, compiled: Compile, tmp_path: Path
) -> None:
    """At every step; a later save clears what is left."""
    package = compiled(spec_text())
    old, new = random_model(package, torch.float32), random_model(package, torch.float32, seed=2)
    seen, after = set(), 0
    while True:
        folder = tmp_path / str(after)
        package.checkpoint.save_hf(old, folder, shard_bytes=first)
        if not killed_save(package, new, folder, second, after):
            break
        try:
            (found,) = [name for name, model in (("old", old), ("new", new)) if holds(package, folder, model)]
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error)
            found = "none"
        seen.add(found)
        package.checkpoint.save_hf(new, folder, shard_bytes=second)
        assert holds(package, folder, new) and not list(folder.glob(".save-*"))
        after += 1
    assert "old" in seen and after > 4


@pytest.mark.parametrize("whose", ["shard", "index"])
def test_shards_of_two_saves_are_refused(whose: str, compiled: Compile, tmp_path: Path) -> None:
    """As an interrupted copy of one folder over another leaves them."""
    package = compiled(spec_text())
    for seed, name in enumerate(("old", "new")):
        package.checkpoint.save_hf(random_model(package, torch.float32, seed=seed), tmp_path / name, shard_bytes=60_000)
    shards = sorted(path.name for path in (tmp_path / "new").glob("model-*"))
    shutil.copy(tmp_path / "new" / (shards[1] if whose == "shard" else INDEX), tmp_path / "old")
    (line,) = refused(package, tmp_path / "old")
    assert "several saves" in line and ".safetensors" in line


def test_an_index_beside_a_single_file_is_refused(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=60_000)
    package.checkpoint.save_hf(random_model(package), tmp_path / "single")
    shutil.copy(tmp_path / "single" / SINGLE, tmp_path)
    (line,) = refused(package, tmp_path)
    assert SINGLE in line and INDEX in line


def test_a_folder_without_a_checkpoint(compiled: Compile, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            compiled(spec_text()).load(folder)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_umask(umask: int, compiled: Compile, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        saved(compiled, spec_text(), tmp_path / "single")
        saved(compiled, spec_text(), tmp_path / "shards", shard_bytes=60_000)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask} and len(files) > 6


# --- quantized tensors: by type and shape, not by name


def quantized(tensors: Tensors) -> None:
    """Every projection of layer 0 in FP8 with blocks of 16 x 24."""
    for name in [name for name in tensors if ".layers.0." in name and "proj" in name]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.full((-(-rows // 16), -(-columns // 24)), 2.0)


WEIGHT = "model.layers.0.mlp.up_proj.weight"  # [40, 136]
SCALE = f"{WEIGHT}_scale_inv"
NORM = "model.norm.weight"

PAIRINGS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no scale": (lambda t: t.pop(SCALE), f"missing: {SCALE}"),
    "scale of other blocks": (lambda t: t.update({SCALE: torch.ones(1, 2)}), f"{SCALE}: [1, 2] on disk, [3, 6]"),
    "scale transposed": (lambda t: t.update({SCALE: torch.ones(6, 3)}), f"{SCALE}: [6, 3] on disk, [3, 6]"),
    "scalar scale": (lambda t: t.update({SCALE: torch.ones(())}), f"{SCALE}: [] on disk, [3, 6]"),
    "flat scale": (lambda t: t.update({SCALE: torch.ones(18)}), f"{SCALE}: [18] on disk, [3, 6]"),
    "a scale more": (lambda t: t.update({SCALE: torch.ones(4, 6)}), f"{SCALE}: [4, 6] on disk, [3, 6]"),
    "codes as scale": (lambda t: t.update({SCALE: torch.ones(3, 6, dtype=torch.uint8)}), f"{SCALE}: U8 on disk"),
    "left-over scale": (lambda t: t.update({WEIGHT: torch.ones(40, 136)}), f"unexpected: {SCALE}"),
    "scale of a norm": (lambda t: t.update({f"{NORM}_scale_inv": torch.ones(9)}), f"unexpected: {NORM}_scale_inv"),
    "scale of nothing": (lambda t: t.update({"x_scale_inv": torch.ones(1, 1)}), "unexpected: x_scale_inv"),
    "vector in FP8": (lambda t: t.update({NORM: torch.ones(136).to(torch.float8_e4m3fn)}), f"{NORM}: F8_E4M3 on disk"),
    "other FP8": (lambda t: t.update({NORM: torch.ones(136).to(torch.float8_e5m2)}), f"{NORM}: F8_E5M2 on disk"),
    "int8": (lambda t: t.update({WEIGHT: torch.ones(40, 136, dtype=torch.int8)}), f"{WEIGHT}: I8 on disk"),
    "uint8": (lambda t: t.update({WEIGHT: torch.ones(40, 136, dtype=torch.uint8)}), f"{WEIGHT}: U8 on disk"),
    "bool": (lambda t: t.update({NORM: torch.ones(136, dtype=torch.bool)}), f"{NORM}: BOOL on disk"),
    "int64": (lambda t: t.update({NORM: torch.ones(136, dtype=torch.int64)}), f"{NORM}: I64 on disk"),
}  # fmt: skip


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairings_of_weights_and_scales(pairing: str, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, FP8, tmp_path)
    edited(tmp_path, quantized)
    package.load(tmp_path)
    change, line = PAIRINGS[pairing]
    edited(tmp_path, change)
    assert any(one.startswith(line) for one in refused(package, tmp_path)[1:])


@pytest.mark.parametrize("with_scales", [True, False])
def test_a_model_without_fp8_takes_no_codes(with_scales: bool, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path)
    edited(tmp_path, quantized)
    if not with_scales:
        edited(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.endswith("_scale_inv")])
    lines = refused(package, tmp_path)
    assert any(line.startswith(f"{WEIGHT}: F8_E4M3 on disk") for line in lines)
    assert with_scales == (f"unexpected: {SCALE}" in lines)


def test_faults_of_all_kinds_come_together(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, FP8, tmp_path)
    edited(tmp_path, quantized)
    edited(
        tmp_path, lambda t: (t.pop(SCALE), t.pop(NORM), t.update({"x": torch.ones(1), "lm_head.weight": torch.ones(3)}))
    )
    assert refused(package, tmp_path)[1:] == [
        "lm_head.weight: [3] on disk, [83, 136] in the model",
        f"missing: {SCALE}",
        f"missing: {NORM}",
        "unexpected: x",
    ]


def test_a_model_on_the_meta_device_stays_there(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path)
    edited(tmp_path, lambda t: t.pop(NORM))
    with torch.device("meta"):
        model = package.model.Model()
    with pytest.raises(ValueError, match=f"missing: {NORM}"):
        package.checkpoint.load_hf(model, tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())


# --- copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tied_head_may_be_repeated(dtype: torch.dtype, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, TIED, tmp_path)
    edited(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].to(dtype, copy=True)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.load(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda head: head * 1.0001, lambda head: head.flip(0), lambda head: head.bfloat16()]
)
def test_a_tied_model_takes_no_other_head(
    change: Callable[[Tensor], Tensor], compiled: Compile, tmp_path: Path
) -> None:
    """transformers would untie the two."""
    package = saved(compiled, TIED, tmp_path)
    edited(tmp_path, lambda t: t.update({"lm_head.weight": change(t["model.embed_tokens.weight"])}))
    _, line = refused(package, tmp_path)
    assert line.startswith("lm_head.weight: the model ties it to model.embed_tokens.weight")


def test_a_tied_head_of_another_shape_is_refused(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, TIED, tmp_path)
    edited(tmp_path, lambda t: t.update({"lm_head.weight": torch.ones(83, 31)}))
    assert refused(package, tmp_path)[1:] == ["lm_head.weight: [83, 31] on disk, [83, 32] in the model"]


@pytest.mark.parametrize("copy", ["model.layers.3.embed_tokens.weight", "model.layers.4.shared_head.head.weight"])
def test_what_a_predictor_has_of_its_own_is_lost_with_a_warning(copy: str, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, WITH_MTP, tmp_path)
    edited(tmp_path, lambda t: t[copy].mul_(1.01))
    with pytest.warns(UserWarning, match=copy.replace(".", r"\.") + " differs from") as warned:
        package.load(tmp_path)
    assert len(warned) == 1


def test_a_predictor_s_copy_of_another_shape_is_refused(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, WITH_MTP, tmp_path)
    copy = "model.layers.3.embed_tokens.weight"
    edited(tmp_path, lambda t: t.update({copy: torch.ones(84, 32)}))
    assert refused(package, tmp_path)[1:] == [f"{copy}: [84, 32] on disk, [83, 32] in the model"]


# --- index and files


def with_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "elsewhere", ["../x.safetensors", "/tmp/x.safetensors", "..", ".", "", "sub/x.safetensors", "x.bin", 3, None, ["a"]]
)
def test_an_index_names_files_beside_it_only(elsewhere: object, compiled: Compile, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    package = saved(compiled, spec_text(), folder, shard_bytes=60_000)
    (folder / "sub").mkdir()
    for outside in (tmp_path, folder / "sub"):
        save_file({NORM: torch.ones(32)}, outside / "x.safetensors")
    with_index(folder, lambda index: index["weight_map"].update({NORM: elsewhere}))
    (line,) = refused(package, folder)
    assert INDEX in line and repr(elsewhere) in line


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": 3}', "[" * 9999, "\udcff", '{"metadata": []}'],
)
def test_what_is_no_index_is_named(text: str, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=60_000)
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    lines = refused(package, tmp_path)
    assert INDEX in lines[0] or all(line.startswith(("missing", "unexpected")) for line in lines[1:])


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
@pytest.mark.parametrize("size", [10**9, 60_000])
def test_a_file_that_is_cut_off_is_named(size: int, cut: int, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=size)
    file = sorted(tmp_path.glob("model*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:cut])
    (line,) = refused(package, tmp_path)
    assert str(file) in line


def test_a_shard_that_is_missing_is_named(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=60_000)
    shard = sorted(tmp_path.glob("model-*"))[-1]
    shard.unlink()
    (line,) = refused(package, tmp_path)
    assert shard.name in line


def rewritten(path: Path, edit: Callable[[Tensors], object]) -> None:
    """Other tensors in a shard, with the metadata that it had."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata)


def test_a_tensor_in_two_shards_is_refused(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=60_000)
    where = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = next(file for file in where.values() if file != where[NORM])
    rewritten(tmp_path / other, lambda t: t.update({NORM: torch.ones(32)}))
    assert refused(package, tmp_path)[1:] == [f"{NORM}: in {other}, where the index does not have it"]


def test_a_tensor_elsewhere_than_the_index_says_is_refused(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path, shard_bytes=60_000)
    where = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = next(file for file in where.values() if file != where[NORM])
    with_index(tmp_path, lambda index: index["weight_map"].update({NORM: other, "lm_head.weight": other, "x": other}))
    assert refused(package, tmp_path)[1:] == [
        f"lm_head.weight: in {where['lm_head.weight']}, where the index does not have it",
        f"{NORM}: in {where[NORM]}, where the index does not have it",
        f"missing: x, which the index has in {other}",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_loaded_with_a_warning(value: float, compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path)
    edited(tmp_path, lambda t: t[NORM].fill_(value))
    with pytest.warns(UserWarning, match=f"1 tensors that are not finite, such as {NORM}"):
        model = package.load(tmp_path)
    assert not model.norm.weight.isfinite().any()


def test_what_overflows_in_the_model_s_type_is_told(compiled: Compile, tmp_path: Path) -> None:
    package = saved(compiled, spec_text(), tmp_path)
    edited(tmp_path, lambda t: t.update({NORM: torch.full((32,), 1e30)}))
    model = package.model.Model().half()
    with pytest.warns(UserWarning, match="not finite"):
        package.checkpoint.load_hf(model, tmp_path)


# --- what travels beside the weights


def test_special_tokens_travel(compiled: Compile, tmp_path: Path) -> None:
    saved(compiled, spec_text(tokens={"bos": 1, "eos": [2, 7], "pad": 0}), tmp_path)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0}
    assert ids.items() <= json.loads((tmp_path / "config.json").read_text()).items()
    assert json.loads((tmp_path / "generation_config.json").read_text()) == ids
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (theirs.config.bos_token_id, theirs.generation_config.eos_token_id) == (1, [2, 7])


def test_tokenizer_files_travel(compiled: Compile, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "secrets.txt"):
        (source / name).write_text(name)
    package = saved(compiled, spec_text(), target, tokenizer=source)
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"
    assert (target / "chat_template.jinja").exists() and not (target / "secrets.txt").exists()
    package.checkpoint.save_hf(random_model(package), target, tokenizer=target)
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_written(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(spec_text())
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match=r"source holds no tokenizer"):
        package.checkpoint.save_hf(random_model(package), tmp_path / "target", tokenizer=tmp_path / "source")
    assert not (tmp_path / "target").exists()
