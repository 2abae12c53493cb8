"""A legal model for whose sizes a kernel has no tile compiles: plain ops there, and a note that says so."""

import pytest

from dsc.compiler.driver import build, emit
from dsc.spec.loader import loads
from dsc.spec.zoo import MODELS

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
