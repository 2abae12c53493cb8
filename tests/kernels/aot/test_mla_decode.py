"""kernels/mla_decode.py at the dims of DeepSeek-V3, compiled for every architecture that takes its rows."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import spec_with
from kernels.paged import kernels

from dsc.compiler.bench.cases import mla_decode as bench
from dsc.compiler.driver import build
from dsc.compiler.kernels.mla_decode import shared_memory, values
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.kernels.tuning import NoTile

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


@pytest.mark.parametrize("arch", sorted(TARGETS.keys() - set(FP8)))
def test_no_fp8_rows_where_there_is_no_fp8(arch: str) -> None:
    with pytest.raises(NoTile):
        kernels("fp8", "deepseek-v3", arch)


@pytest.mark.parametrize(("key", "size"), [("kv_lora_rank", 48), ("kv_lora_rank", 384), ("qk_rope_head_dim", 8)])
def test_dims_that_the_kernel_does_not_take(key: str, size: int) -> None:
    """They are refused while compiling; the compiler then leaves the operator to PyTorch."""
    spec = spec_with("tiny", {f"attention.{key}": size})
    with pytest.raises(NoTile, match="powers of two"):
        values(build(spec).training, spec, TARGETS["sm_90"])
