"""A legal model for whose sizes a kernel has no tile compiles: plain ops there, and a note that says so."""

import tomllib
from itertools import product
from pathlib import Path

import pytest

from dsc import compiler
from dsc.compiler.driver import build, emit
from dsc.spec.loader import loads
from dsc.spec.zoo import MODELS

TILES = Path(compiler.__file__).with_name("kernels") / "tiles"
CASES = [
    ("llama-3.1-405b", "hidden_size: 16384", "hidden_size: 18432", "rms_norm"),
    ("llama-3.1-405b", "hidden_size: 16384", "hidden_size: 32768", "rms_norm"),
    ("deepseek-v3", "kv_lora_rank: 512", "kv_lora_rank: 65537", "rms_norm"),
    ("deepseek-v3", "qk_rope_head_dim: 64", "qk_rope_head_dim: 512", "mla_decode"),
    ("deepseek-v3", "hidden_size: 7168", "hidden_size: 100000", "rms_norm"),
    ("deepseek-v2-lite", "v_head_dim: 128", "v_head_dim: 1024", "mla_attention"),
]


@pytest.mark.parametrize(("name", "given", "instead", "kernel"), CASES)
def test_a_kernel_without_a_tile_is_left_out(name: str, given: str, instead: str, kernel: str) -> None:
    text = (MODELS / f"{name}.yaml").read_text()
    assert given in text
    if "cluster:" not in text:
        text += "cluster: {kind: h100, nodes: 1}\n"
    program = build(loads(text.replace(given, instead), "spec.yaml"))
    files = emit(program)
    assert any(f"kernels/{kernel}.py" in note for note in program.notes), program.notes
    assert f"kernels/{kernel}.py" not in files
    assert f"kernels/{kernel}.py" in emit(build(loads(text, "spec.yaml")))


@pytest.mark.parametrize("name", ["mla_attention", "mla_attention_backward", "gqa_attention", "gqa_attention_backward"])
def test_a_pass_over_queries_is_tuned_only_with_whole_blocks_of_keys(name: str) -> None:
    """Its first loop, without a mask, ends where the queries begin, which has to be where a block of keys ends."""
    tables = tomllib.loads((TILES / f"{name}.toml").read_text())
    passes = [key for key in tables["grid"] if key in ("forward", "queries")]
    assert passes
    for key in passes:
        tiles = [row["tile"] for row in tables[key]]
        tuned = product(tables["grid"][key]["BLOCK_M"], tables["grid"][key]["BLOCK_N"])
        for queries, keys in [*tuned, *((tile["BLOCK_M"], tile["BLOCK_N"]) for tile in tiles)]:
            assert queries % keys == 0, (key, queries, keys)
