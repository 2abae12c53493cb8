"""Checkpoints: Hugging Face's names and values both ways, shards, MTP as further layers, FP8, and errors by name."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from numerics import reference
from numerics.families import Case
from numerics.harness import (
    SINGLE,
    Compile,
    OracleOf,
    Package,
    Tensors,
    imported_text,
    random_model,
    relative_error,
    some_tokens,
)
from numerics.specs import MTP, spec_text
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

INDEX = "model.safetensors.index.json"
WITH_MTP = spec_text(mtp={**MTP, "depth": 2})


def all_tensors(folder: Path) -> Tensors:
    """Every tensor of a folder, whichever file holds it."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    for name in expected:
        assert actual[name].dtype == expected[name].dtype and torch.equal(actual[name], expected[name]), name


# --- both ways with transformers


def test_round_trip_is_exact(family: Case, oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    """What save_hf writes is what save_pretrained wrote: the same names, shapes, types and bits."""
    oracle = oracle_of(family)
    package = compiled(imported_text(oracle))
    package.checkpoint.save_hf(package.load(oracle.folder), tmp_path)
    assert_same(all_tensors(tmp_path), all_tensors(oracle.folder))


def test_transformers_reads_what_we_write(family: Case, oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    package = compiled(imported_text(oracle_of(family)))
    model, tokens = random_model(package, torch.float32, seed=5), some_tokens()
    package.checkpoint.save_hf(model, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert relative_error(model(tokens), theirs(tokens, use_cache=False).logits) < 1e-5


def test_transformers_reads_a_model_with_mtp(compiled: Compile, tmp_path: Path) -> None:
    """It leaves the further layers aside, as it does with DeepSeek-V3's own files."""
    package = compiled(WITH_MTP)
    model, tokens = random_model(package, torch.float32), some_tokens()
    package.checkpoint.save_hf(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    assert relative_error(model(tokens), theirs(tokens, use_cache=False).logits) < 1e-5


def test_mixtral_has_its_own_names(oracle_of: OracleOf, compiled: Compile) -> None:
    package = compiled(imported_text(oracle_of(Case("mixtral", "base"))))
    names = package.tensors(random_model(package)).keys()
    prefix = "model.layers.0.block_sparse_moe."
    experts = {f"experts.{e}.{w}.weight" for e in range(4) for w in ("w1", "w2", "w3")}
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == {"gate.weight", *experts}


def test_named_tensors_are_views(compiled: Compile) -> None:
    package = compiled(WITH_MTP)
    model = random_model(package)
    before = package.tensors(model)
    for _, tensor in package.checkpoint.named_tensors(model):
        tensor.add_(1)
    for name, tensor in package.tensors(model).items():
        torch.testing.assert_close(tensor, before[name] + 1)


# --- files


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 100_000])
def test_shards_with_an_index(shard_bytes: int, compiled: Compile, tmp_path: Path) -> None:
    package = compiled(WITH_MTP)
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, tmp_path, shard_bytes=shard_bytes)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 1 and not (tmp_path / SINGLE).exists()
    stored = all_tensors(tmp_path)
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    for file in files:
        tensors = load_file(tmp_path / file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
        assert all(index["weight_map"][name] == file for name in tensors)
    assert_same(package.tensors(package.load(tmp_path)), package.tensors(model))


def test_shards_of_transformers(family: Case, oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    oracle = oracle_of(family)
    oracle.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).exists()
    package = compiled(imported_text(oracle))
    assert_same(package.tensors(package.load(tmp_path)), package.tensors(package.load(oracle.folder)))


def test_mtp_is_stored_as_further_layers(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(WITH_MTP)
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, tmp_path)
    stored = all_tensors(tmp_path)
    for depth, prefix in enumerate(("model.layers.3.", "model.layers.4.")):
        own = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
        layer = {name.removeprefix("model.layers.2.") for name in stored if name.startswith("model.layers.2.")}
        further = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
        shared = {
            "embed_tokens.weight": stored["model.embed_tokens.weight"],
            "shared_head.head.weight": stored["lm_head.weight"],
        }
        assert own.keys() == layer | further | shared.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in shared.items())
        module = model.mtp[depth]
        assert torch.equal(own["eh_proj.weight"], module.eh_proj.weight)
        assert torch.equal(own["shared_head.norm.weight"], module.norm.weight)
        assert torch.equal(own["mlp.experts.5.up_proj.weight"], module.layer.mlp.gate_up_proj[5].chunk(2)[1])


def test_an_absent_predictor_is_left_as_initialised(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(WITH_MTP)
    saved, target = random_model(package, torch.float32), random_model(package, torch.float32, seed=9)
    write_without(tmp_path, package, saved, "model.layers.3.", "model.layers.4.")
    before = {name: parameter.clone() for name, parameter in target.mtp.named_parameters()}
    with pytest.warns(UserWarning, match="no multi-token predictor"):
        package.checkpoint.load_hf(target, tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.mtp.named_parameters())
    assert torch.equal(target.lm_head.weight, saved.lm_head.weight)


def test_a_whole_checkpoint_loads_without_warnings(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(WITH_MTP)
    package.checkpoint.save_hf(random_model(package, torch.float32), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.load(tmp_path)


def test_load_casts_to_the_model(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(spec_text())
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model.bfloat16(), tmp_path)
    loaded = package.model.Model().double()
    package.checkpoint.load_hf(loaded, tmp_path)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter, model.get_parameter(name).double()), name


# --- errors


def write_without(folder: Path, package: Package, model: nn.Module, *prefixes: str, **changed: Tensor) -> None:
    """A checkpoint with some tensors left out and others put in; ___ stands for a dot."""
    package.checkpoint.save_hf(model, folder)
    tensors = {name: t for name, t in all_tensors(folder).items() if not name.startswith(prefixes or "-")}
    save_file(tensors | {name.replace("___", "."): t for name, t in changed.items()}, folder / SINGLE)


def test_every_problem_is_listed(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(spec_text())
    gone = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.experts.3.down_proj.weight")
    write_without(
        tmp_path,
        package,
        random_model(package, torch.float32),
        *gone,
        surplus___weight=torch.zeros(1),
        model___layers___7___mlp___gate___weight=torch.zeros(1),
        model___norm___weight=torch.zeros(31),
        lm_head___weight=torch.zeros(32, 83),
    )
    with pytest.raises(ValueError, match="does not fit the model") as error:
        package.load(tmp_path)
    lines = str(error.value).splitlines()[1:]
    assert sorted(lines) == sorted(
        [
            *(f"missing: {name}" for name in gone),
            "unexpected: model.layers.7.mlp.gate.weight",
            "unexpected: surplus.weight",
            "model.norm.weight: [31] on disk, [32] in the model",
            "lm_head.weight: [32, 83] on disk, [83, 32] in the model",
        ]
    )


def test_half_a_predictor_is_an_error(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(WITH_MTP)
    write_without(tmp_path, package, random_model(package, torch.float32), "model.layers.3.eh_proj")
    with pytest.raises(ValueError, match=r"missing: model\.layers\.3\.eh_proj\.weight"):
        package.load(tmp_path)


def test_a_deeper_model_is_an_error(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(spec_text())
    deeper = compiled(spec_text(layers=[{"repeat": 1, "ffn": "dense"}, {"repeat": 3, "ffn": "moe"}]))
    deeper.checkpoint.save_hf(random_model(deeper, torch.float32), tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.3\."):
        package.load(tmp_path)


def test_other_shared_experts_are_an_error(compiled: Compile, tmp_path: Path) -> None:
    """Shared experts of width 0 are nothing to miss, others are."""
    package = compiled(spec_text(ffn__moe__n_shared_experts=0))
    other = compiled(spec_text())
    other.checkpoint.save_hf(random_model(other, torch.float32), tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.1\.mlp\.shared_experts"):
        package.load(tmp_path)


# --- FP8

KEPT = ("norm", "embed_tokens", "lm_head", "mlp.gate.", "eh_proj", "shared_head")


@pytest.mark.parametrize("block", [[128, 128], [16, 24], [7, 5]], ids=str)
def test_fp8_is_multiplied_out(block: list[int], compiled: Compile, tmp_path: Path) -> None:
    """Projections in FP8 with a multiplier for each block, cut short at the edges: W = W_fp8 * scale_inv."""
    linear = {"kind": "fp8_block", "weight_block": block, "activation_block": [1, block[1]]}
    text = spec_text(
        mtp=MTP,
        hidden_size=136,
        attention__kv_lora_rank=132,
        attention__num_attention_heads=7,
        ffn__moe__moe_intermediate_size=9,
        precision={"parameters": "fp32", "linear": linear},
    )
    package = compiled(text)
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, tmp_path)
    stored, expected = quantised(all_tensors(tmp_path), (block[0], block[1]))
    save_file(stored, tmp_path / SINGLE)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in stored.values()) > 50
    loaded = package.tensors(package.load(tmp_path))
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name
    original = package.tensors(model)
    assert any(not torch.equal(tensor, original[name]) for name, tensor in loaded.items())


def quantised(tensors: Tensors, block: tuple[int, int]) -> tuple[Tensors, Tensors]:
    """What stands on disk, and what it means."""
    stored, expected = {}, {}
    for name, tensor in tensors.items():
        if any(part in name for part in KEPT):
            stored[name] = expected[name] = tensor
            continue
        weight, scale = to_fp8(tensor, block)
        stored[name], stored[f"{name}_scale_inv"] = weight, scale
        expected[name] = reference.dequantised(weight, scale, block)
    return stored, expected


def to_fp8(tensor: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each block divided by its largest element / 448 (DeepSeek-V3, section 3.3.2)."""
    rows, columns = (-(-size // edge) for size, edge in zip(tensor.shape, block, strict=True))
    weight, scale = torch.empty_like(tensor, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = tensor[part].abs().max() / 448
            weight[part] = (tensor[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return weight, scale


def test_a_model_with_fp8_writes_no_fp8(compiled: Compile, tmp_path: Path) -> None:
    """save_hf writes what the model holds, so the config beside it says nothing of quantisation."""
    package = compiled(spec_text(precision={"parameters": "fp32", "linear": {"kind": "fp8_block"}}))
    package.checkpoint.save_hf(random_model(package, torch.float32), tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert all(tensor.dtype == torch.float32 for tensor in all_tensors(tmp_path).values())
