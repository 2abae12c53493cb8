"""Rows of the caches, layer by layer, against what each attention kind keeps."""

from dsc.compiler.driver import build
from dsc.compiler.graph.cache_rows import cache_rows
from dsc.compiler.graph.types import DType
from dsc.spec.loader import load

FORWARD, MTP = "Model.forward", "MultiTokenPredictor.forward"


def rows_of(name, key=FORWARD, **precision):
    spec = load(name)
    spec = spec.model_copy(update={"cluster": None, "precision": spec.precision.model_copy(update=precision)})
    return cache_rows(build(spec).training, key)


def test_latents_and_rotary_keys():
    """DeepSeek-V3: 512 and 64 numbers in bfloat16 for each of 61 layers, and for the layer that predicts ahead."""
    rows = rows_of("deepseek-v3")
    assert list(rows) == [f"layers.{layer}.self_attn." for layer in range(61)]
    assert {tuple((row.name, row.bytes) for row in of_layer) for of_layer in rows.values()} == {
        (("kv_latent", 1024), ("k_rope", 128))
    }
    assert list(rows_of("deepseek-v3", MTP)) == ["layer.self_attn."]


def test_keys_and_values():
    rows = rows_of("llama-3.1-8b")
    assert len(rows) == 32
    assert {tuple((row.name, row.bytes) for row in of_layer) for of_layer in rows.values()} == {
        (("k", 8 * 128 * 2), ("v", 8 * 128 * 2))
    }
    assert rows_of("llama-3.1-8b", MTP) == {}


def test_fp8_rows_are_the_same_by_spec_and_by_question():
    """A latent as 512 codes and 4 scales; the rotary part stays in bfloat16."""
    (plain, *_), (coded, *_) = rows_of("deepseek-v3").values(), rows_of("deepseek-v3", kv_cache="fp8").values()
    assert tuple(row.in_fp8_cache() for row in plain) == coded
    assert [(row.dtype, row.bytes) for row in coded] == [(DType.FP8, 512 + 4 * 4), (DType.BF16, 64 * 2)]
