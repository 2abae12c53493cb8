"""kernels/mla_decode.py at the dims of DeepSeek-V3, compiled for every architecture that takes its rows."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import spec_with
from kernels.paged import kernels

from dsc.compiler.bench.cases import mla_decode as bench
from dsc.compiler.driver import build
from dsc.compiler.kernels.latent_cache import cache_rows
from dsc.compiler.kernels.mla_decode import refusal, shared_memory
from dsc.compiler.kernels.target import TARGETS

FP8 = [arch for arch, target in TARGETS.items() if target.fp8]
UNALIGNED = (7, 3)  # sequences and new tokens that no power of two divides: other addresses, more registers


@pytest.mark.parametrize(("arch", "rows"), [*((arch, "plain") for arch in TARGETS), *((arch, "fp8") for arch in FP8)])
def test_budget(monkeypatch: pytest.MonkeyPatch, arch: str, rows: str) -> None:
    _, module = kernels(rows, "deepseek-v3", arch)
    sizes = ((16, 1), (128, 2), UNALIGNED) if arch == "sm_90" else ((16, 1),)
    monkeypatch.setattr(bench, "SIZES", sizes)
    cases = list(bench.cases(module, 4096, "cpu"))
    measured = {case.name: compile_launches([module], case.run, arch) for case in cases}
    tile = {"block_m": module.BLOCK_M, "block_n": module.BLOCK_N, "num_stages": module.NUM_STAGES}
    claimed = shared_memory(tile, module.KV_LORA_RANK, module.QK_ROPE_HEAD_DIM, TARGETS[arch])
    for decode, *combine in measured.values():
        assert decode.shared <= claimed <= TARGETS[arch].shared_memory
        assert decode.matrix
        for launch in (decode, *combine):
            if arch == "sm_90":
                assert launch.spilled == 0
                assert launch.wide_loads > 0
        if arch == "sm_90":
            assert "HGMMA" in decode.matrix
    assert any(len(launches) == 2 for launches in measured.values()), "no case combines"
    check_budget(f"mla_decode_{rows}", arch, measured)


def test_no_fp8_rows_where_there_is_no_fp8() -> None:
    """The compiler keeps bfloat16 rows there, and says so."""
    keys = {"precision.kv_cache": "fp8", "attention.kv_lora_rank": 128}
    for kind, without in (("a100", True), ("mi300x", True), ("h800", False)):
        program = build(spec_with("tiny", {**keys, "cluster": {"kind": kind, "nodes": 1}}))
        assert without == any(note.startswith("precision.kv_cache: rows are kept in bf16") for note in program.notes)
        assert cache_rows(program.spec, program.target) == ("plain" if without else "fp8")


@pytest.mark.parametrize(("key", "size"), [("kv_lora_rank", 48), ("kv_lora_rank", 384), ("qk_rope_head_dim", 8)])
def test_dims_that_the_kernel_does_not_take(key: str, size: int) -> None:
    """They are refused while compiling; the compiler then leaves attention expanded, and says so."""
    spec = spec_with("tiny", {f"attention.{key}": size, "cluster": {"kind": "h100", "nodes": 1}})
    assert "powers of two" in refusal(spec)
    (note,) = (note for note in build(spec).notes if note.startswith("infer: expanded attention"))
    assert refusal(spec) in note
