"""kernels/latent_cache.py in the interpreter: the rows that it writes, and those that it must leave alone."""

from types import ModuleType
from typing import Any

import pytest
import torch
from kernels import lab
from kernels.lab import calc_diff, poisoned, randn
from kernels.paged import kernels, mutated, poisoned_cache, turns
from torch import Tensor

DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}
SPECS: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "half": {"attention__rope__layout": "half"},
    "odd sizes": {"attention__kv_lora_rank": 48, "attention__q_lora_rank": 100, "attention__qk_rope_head_dim": 6},
    "no query latent": {"attention__q_lora_rank": None},
}
FP8 = {"attention__kv_lora_rank": 256}
POSITIONS, PAGES = 50, 3
NOWHERE = 2 * POSITIONS  # the position of a token that is skipped, behind the table


def inputs(module: ModuleType, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """kv, its weight, and the same of the query latent where there is one; all between NaNs."""
    widths = [(module.KV_LORA_RANK + module.QK_ROPE_HEAD_DIM, module.KV_LORA_RANK)]
    widths += [(module.Q_LORA_RANK,) * 2] if hasattr(module, "Q_LORA_RANK") else []
    shapes = [shape for width, weight in widths for shape in ((tokens, width), (weight,))]
    return [poisoned(randn(*shape, dtype=dtype, seed=seed)) for seed, shape in enumerate(shapes)]


def places(tokens: int) -> tuple[Tensor, Tensor]:
    """Positions and slots in no order; every third token but the first is skipped."""
    generator = torch.Generator().manual_seed(5)
    positions = torch.randint(POSITIONS, (tokens,), generator=generator)
    slots = torch.randperm(PAGES * 64, generator=generator)[:tokens]
    skipped = torch.arange(tokens) % 3 == 2
    return positions.where(~skipped, NOWHERE), slots.where(~skipped, -1)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


def check(module: ModuleType, tokens: int, dtype: torch.dtype, bound: float, half: bool = False) -> None:
    given = inputs(module, tokens, dtype)
    positions, slots = places(tokens)
    rope = poisoned(turns(module, POSITIONS, half))
    cache = poisoned_cache(module, PAGES, dtype)
    before = cache.clone()
    q_normed = module.write_latent_cache(*given, rope, positions, slots, cache)

    wide = [x.double() for x in given]
    kept = slots[slots >= 0]
    exact = torch.full(cache.shape, torch.nan, dtype=torch.float64)
    q_exact = module.reference(*wide, rope.double(), positions, slots, exact)
    rows, before, exact = (x.view(PAGES * 64, -1) for x in (cache, before, exact))
    assert calc_diff(rows[kept], exact[kept]) <= bound
    rows[kept] = before[kept]
    assert torch.equal(bits(rows), bits(before)), "a row changed that no token was sent to"
    if q_exact is not None:
        assert calc_diff(q_normed, q_exact) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_reference(spec: str, dtype: torch.dtype) -> None:
    (module,) = lab.kernels(("latent_cache",), **SPECS[spec])
    for tokens in (1, 2, 70):
        check(module, tokens, dtype, DTYPES[dtype], half=spec == "half")


def test_slices_of_one_projection() -> None:
    """kv and q_latent side by side, as one product of both weights leaves them; batch and sequence unflattened."""
    module, _ = kernels("plain")
    kv, kv_weight, q, q_weight = inputs(module, 6, torch.float32)
    fused = torch.cat((q, kv), -1).view(2, 3, -1)
    positions, slots = torch.arange(6).view(2, 3), torch.tensor([[9, 70, 1], [64, 0, 63]])
    rope = turns(module, POSITIONS)
    caches = [poisoned_cache(module, 2, torch.float32) for _ in range(2)]
    apart = module.write_latent_cache(kv, kv_weight, q, q_weight, rope, positions.flatten(), slots.flatten(), caches[0])
    q_side, kv_side = fused.split((q.shape[-1], kv.shape[-1]), -1)
    together = module.write_latent_cache(kv_side, kv_weight, q_side, q_weight, rope, positions, slots, caches[1])
    assert torch.equal(bits(caches[0]), bits(caches[1]))
    assert torch.equal(apart, together.flatten(0, 1))


def test_a_weight_of_another_type() -> None:
    module, _ = kernels("plain")
    kv, kv_weight, q, q_weight = inputs(module, 4, torch.bfloat16)
    rope, positions, slots = turns(module, POSITIONS), torch.arange(4), torch.arange(4)
    caches = [poisoned_cache(module, 1, torch.bfloat16) for _ in range(2)]
    module.write_latent_cache(kv, kv_weight, q, q_weight, rope, positions, slots, caches[0])
    module.write_latent_cache(kv, kv_weight.float(), q, q_weight.float(), rope, positions, slots, caches[1])
    assert torch.equal(bits(caches[0]), bits(caches[1]))


def test_no_tokens() -> None:
    module, _ = kernels("plain")
    given, none = inputs(module, 0, torch.float32), torch.zeros(0, dtype=torch.int64)
    cache = poisoned_cache(module, 1, torch.float32)
    rope = turns(module, POSITIONS)
    assert module.write_latent_cache(*given, rope, none, none, cache).shape == (0, module.Q_LORA_RANK)


def quantized(row: Tensor, module: ModuleType) -> Tensor:
    """The bytes of a float8 row from a bfloat16 one, group by group."""
    latent, k_rope = row.split((module.KV_LORA_RANK, module.QK_ROPE_HEAD_DIM))
    codes, scales = [], []
    for group in latent.float().split(module.GROUP):
        scales.append(group.abs().max().clamp(min=1e-4) / 448)
        codes.append((group * (1 / scales[-1])).to(torch.float8_e4m3fn))
    return torch.cat([bits(part) for part in (torch.cat(codes), torch.stack(scales), k_rope.contiguous())])


def check_codes(fp8: ModuleType, plain: ModuleType) -> None:
    """Rows are bit for bit the bfloat16 rows quantized; a row of zeros is, too."""
    tokens = 20
    given = inputs(plain, tokens, torch.bfloat16)
    given[0][3, : plain.KV_LORA_RANK] = 0
    given[0][4, 128 : plain.KV_LORA_RANK] *= 1e-3
    rope, (positions, slots) = turns(plain, POSITIONS), places(tokens)
    caches = [poisoned_cache(module, PAGES, torch.bfloat16) for module in (plain, fp8)]
    normed = [
        module.write_latent_cache(*given, rope, positions, slots, cache)
        for module, cache in zip((plain, fp8), caches, strict=True)
    ]
    assert torch.equal(*normed)
    rows, actual = (cache.view(PAGES * 64, -1) for cache in caches)
    expected = torch.full_like(actual, 255)
    for slot in slots[slots >= 0].tolist():
        expected[slot] = quantized(rows[slot], fp8)
    assert torch.equal(actual, expected)


def test_fp8_rows_are_bit_equal() -> None:
    check_codes(kernels("fp8", **FP8)[0], kernels("plain", **FP8)[0])


def test_fp8_reference_is_bit_equal() -> None:
    """The reference itself, on the CPU's path, against the same oracle."""
    fp8, _ = kernels("fp8", **FP8)
    kv, kv_weight, *_ = inputs(fp8, 9, torch.bfloat16)
    rope, positions = turns(fp8, POSITIONS), torch.arange(9)
    plain, _ = kernels("plain", **FP8)
    rows = plain.reference_rows(kv, kv_weight, rope, positions).bfloat16()
    expected = torch.stack([quantized(row, fp8) for row in rows])
    assert torch.equal(fp8.reference_rows(kv, kv_weight, rope, positions), expected)


def test_a_row_of_v3_has_656_bytes() -> None:
    module, _ = kernels("fp8", "deepseek-v3")
    assert module.empty_cache(2, torch.empty(0, device="meta")).shape == (2, 64, 656)


@pytest.mark.parametrize("rows", ["plain", "fp8"])
def test_operator(rows: str) -> None:
    """Schema, and shapes and types under FakeTensor."""
    module, _ = kernels(rows, **FP8)
    cache = poisoned_cache(module, 1, torch.float32).fill_(0)
    rope, positions, slots = turns(module, POSITIONS), torch.arange(3), torch.tensor([5, -1, 7])
    given = [x.clone() for x in inputs(module, 3, torch.float32)]
    torch.library.opcheck(
        module._write, (*given, rope, positions, slots, cache), test_utils=("test_schema", "test_faketensor")
    )


def test_operator_without_query_latent() -> None:
    module, _ = kernels("plain", attention__q_lora_rank=None)
    cache = poisoned_cache(module, 1, torch.float32).fill_(0)
    rope, positions, slots = turns(module, POSITIONS), torch.arange(3), torch.tensor([5, -1, 7])
    given = [x.clone() for x in inputs(module, 3, torch.float32)]
    torch.library.opcheck(
        module._write, (*given, rope, positions, slots, cache), test_utils=("test_schema", "test_faketensor")
    )


FAULTS = {
    "no eps": ("/ D + eps)", "/ D + eps * 0)"),
    "weight dropped": ("+ eps) * weight)", "+ eps))"),
    "columns not masked": ("x = tl.load(x_ptr + offs_d, mask=offs_d < D", "x = tl.load(x_ptr + offs_d, mask=True"),
    "sin's sign": ("y0 = x0 * cos - x1 * sin", "y0 = x0 * cos + x1 * sin"),
    "positions ignored": ("tl.load(positions_ptr + token)", "tl.load(positions_ptr)"),
    "offset in the page lost": ("cache_ptr + slot * (L + R) + L", "cache_ptr + slot // 64 * 64 * (L + R) + L"),
    "skip ignored": ("slot = tl.load(slots_ptr + token)", "slot = tl.abs(tl.load(slots_ptr + token))"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    module = lab.mutated("latent_cache", *FAULTS[fault], attention__kv_lora_rank=48)
    with pytest.raises(AssertionError):
        for dtype, bound in DTYPES.items():
            check(module, 20, dtype, bound)


FP8_FAULTS = {
    "one scale too wide": ("tl.max(tl.abs(groups), 1)", "tl.max(tl.max(tl.abs(groups), 1))"),
    "scale swapped": ("tl.div_rn(1.0, scale)[:, None]", "scale[:, None]"),
    "sign dropped": ("tl.max(tl.abs(groups), 1)", "tl.max(groups, 1)"),
    "not rounded to bfloat16 first": ("latent.to(tl.float32), (BLOCK_L", "(latent.to(tl.float32) * 1.001), (BLOCK_L"),
    "no floor": ("AMAX_MIN), E4M3_MAX)", "1e-6), E4M3_MAX)"),
}


@pytest.mark.parametrize("fault", FP8_FAULTS)
def test_a_planted_fault_of_fp8_rows_is_caught(fault: str) -> None:
    fp8, _ = mutated("latent_cache", *FP8_FAULTS[fault], "fp8", **FP8)
    with pytest.raises(AssertionError):
        check_codes(fp8, kernels("plain", **FP8)[0])
