"""kernels/gqa_decode.py in the interpreter: attention over pages, against itself in float64 and plain attention."""

from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import calc_diff, package, printed, randn, spec_with
from torch import Tensor

FP32, BF16 = 1e-11, 1e-5
PAGE_EDGES = [1, 63, 64, 65, 127, 128, 129]
NO_PAGE = 1 << 30  # in the table behind a sequence's pages
SMALL = {
    "attention.num_attention_heads": 6,
    "attention.num_key_value_heads": 2,
    "attention.head_dim": 32,
    "hidden_size": 192,
}


@cache
def text(**changes: Any) -> dict[str, str]:
    return printed(("gqa_decode",), spec_with("llama-3.1-8b", SMALL | changes))


@cache
def kernel(**changes: Any) -> ModuleType:
    (module,) = package(text(**changes), ("gqa_decode",))
    return module


def mutated(old: str, new: str) -> ModuleType:
    files = text()
    assert files["gqa_decode.py"].count(old) == 1, old
    (module,) = package({**files, "gqa_decode.py": files["gqa_decode.py"].replace(old, new)}, ("gqa_decode",))
    return module


class Setting:
    """Sequences in shuffled pages, all else NaN, and queries for them."""

    def __init__(
        self, module: ModuleType, lengths: list[int], queries: int, dtype: torch.dtype, page: int = 64
    ) -> None:
        heads, kv_heads, width = module.NUM_HEADS, module.NUM_KV_HEADS, module.HEAD_DIM
        generator = torch.Generator().manual_seed(len(lengths) + queries)
        counts = [-(-length // page) for length in lengths]
        pages = torch.randperm(sum(counts) + 3, generator=generator)[: sum(counts)].split(counts)
        self.cache = torch.full((sum(counts) + 3, page, 2 * kv_heads * width), float("nan"), dtype=dtype)
        self.table = torch.full((len(lengths), max(counts) + 2), NO_PAGE, dtype=torch.int32)
        self.rows = [randn(length, 2 * kv_heads * width, dtype=dtype, seed=i) for i, length in enumerate(lengths)]
        for index, (mine, rows) in enumerate(zip(pages, self.rows, strict=True)):
            self.table[index, : len(mine)] = mine
            slots = torch.arange(len(rows)) % page + mine.repeat_interleave(page)[: len(rows)] * page
            self.cache.view(-1, rows.shape[1])[slots] = rows
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.q = randn(len(lengths), queries, heads, width, dtype=dtype, seed=99)

    def run(self, module: ModuleType, begins: int = 0) -> Tensor:
        return module.gqa_decode(self.q, self.cache, self.table, self.lengths, begins)

    def exact(self, module: ModuleType, begins: int = 0) -> Tensor:
        return module.reference(self.q.double(), self.cache, self.table, self.lengths, begins)


def check(
    module: ModuleType, lengths: list[int], queries: int = 1, dtype: torch.dtype = torch.float32, begins: int = 0
) -> None:
    setting = Setting(module, lengths, queries, dtype)
    bound = BF16 if dtype is torch.bfloat16 else FP32
    assert calc_diff(setting.run(module, begins), setting.exact(module, begins)) <= bound


def split_into(monkeypatch: pytest.MonkeyPatch, module: ModuleType, splits: int) -> None:
    """Splits of one tile at least, so that short sequences have several."""
    monkeypatch.setattr(module, "num_splits", lambda batch, rows, tokens: splits)
    monkeypatch.setattr(module, "MIN_SPLIT", module.SPLIT["BLOCK_N"])


def test_the_reference_is_attention() -> None:
    """PyTorch's own, over the same keys and values without pages."""
    module = kernel()
    setting = Setting(module, [70, 9], 3, torch.float64)
    out = setting.run(module) if setting.q.dtype is torch.float32 else setting.exact(module)
    for index, rows in enumerate(setting.rows):
        k, v = rows.unflatten(-1, (2, module.NUM_KV_HEADS, module.HEAD_DIM)).permute(1, 2, 0, 3)
        visible = torch.ones(3, len(rows), dtype=torch.bool).tril(len(rows) - 3)
        q = setting.q[index].transpose(0, 1)
        expected = F.scaled_dot_product_attention(q, k, v, visible, scale=module.ATTENTION_SCALE, enable_gqa=True)
        torch.testing.assert_close(out[index], expected.transpose(0, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_page_edges_together_in_one_batch(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    split_into(monkeypatch, kernel(), splits)
    check(kernel(), PAGE_EDGES)
    check(kernel(), PAGE_EDGES, dtype=torch.bfloat16)


def test_every_length_to_200(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them whole, and every seventh in splits."""
    check(kernel(), list(range(1, 201)))
    split_into(monkeypatch, kernel(), 4)
    check(kernel(), list(range(7, 201, 7)))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("queries", [2, 9, 40])
def test_several_query_tokens(monkeypatch: pytest.MonkeyPatch, queries: int, splits: int) -> None:
    """Also more rows than a tile has: a part of a prompt, whose first tiles stop before its last tokens."""
    split_into(monkeypatch, kernel(), splits)
    check(kernel(), [queries, 65, 130], queries)


@pytest.mark.parametrize("heads", [(4, 4), (8, 1)])
def test_a_head_each_and_one_for_all(heads: tuple[int, int]) -> None:
    keys = {"attention.num_attention_heads": heads[0], "attention.num_key_value_heads": heads[1]}
    check(kernel(**keys), [5, 70], 2)


@pytest.mark.parametrize("width", [4, 24, 96])
def test_heads_that_are_no_power_of_two_wide(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    module = kernel(**{"attention.head_dim": width})
    check(module, [5, 70], 2)
    split_into(monkeypatch, module, 3)
    check(module, [5, 70], 2, dtype=torch.bfloat16)


@pytest.mark.parametrize("page", [1, 16, 32, 96, 128])
def test_pages_of_other_sizes_than_a_tile(page: int) -> None:
    """Smaller, larger but not by whole tiles, and of several tiles."""
    module = kernel()
    assert module.SPLIT["BLOCK_N"] == 64
    setting = Setting(module, [1, 63, 65, 130], 2, torch.float32, page)
    assert calc_diff(setting.run(module), setting.exact(module)) <= FP32


@pytest.mark.parametrize("splits", [1, 3])
def test_rows_before_the_first_are_never_seen(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    module = kernel()
    split_into(monkeypatch, module, splits)
    setting = Setting(module, [1, 2, 70], 1, torch.float32)
    expected = setting.exact(module, 1)
    for table, _ in zip(setting.table, setting.rows, strict=True):
        setting.cache[table[0], 0] = float("nan")
    out = setting.run(module, 1)
    assert calc_diff(out, expected) <= FP32 and not out[0].any() and bool(out[1].any())


@pytest.mark.parametrize("splits", [1, 3])
def test_queries_that_see_nothing_give_zeros(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """An empty sequence fills up a batch of a captured graph; fewer tokens than queries are no error either."""
    module = kernel()
    split_into(monkeypatch, module, splits)
    setting = Setting(module, [1, 2, 70], 3, torch.float32)
    setting.lengths[0] = 0
    out = setting.run(module)
    assert calc_diff(out, setting.exact(module)) <= FP32
    assert not out[0].any() and not out[1, 0].any() and bool(out[1, 1].any())


def test_no_sequences() -> None:
    module = kernel()
    setting = Setting(module, [3], 1, torch.float32)
    assert module.gqa_decode(setting.q[:0], setting.cache, setting.table[:0], setting.lengths[:0]).shape == (
        0,
        1,
        6,
        32,
    )


def test_operator() -> None:
    """Schema, and shapes and types under FakeTensor."""
    setting = Setting(kernel(), [5, 66], 2, torch.float32)
    setting.cache = setting.cache.nan_to_num()
    arguments = (setting.q, setting.cache, setting.table, setting.lengths, 0)
    torch.library.opcheck(kernel()._decode, arguments, test_utils=("test_schema", "test_faketensor"))


def test_strided_inputs() -> None:
    module = kernel()
    setting = Setting(module, [70, 9], 2, torch.float32)
    expected = setting.run(module)
    setting.q = setting.q.transpose(1, 2).contiguous().transpose(1, 2)
    setting.cache = torch.stack((setting.cache, setting.cache), -1)[..., 0]
    assert torch.equal(setting.run(module), expected)


def test_pages_and_lengths_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """IndexError from the reference on a CPU; NaN from the kernel, for the queries that see them alone."""
    module = kernel()
    setting = Setting(module, [70, 9], 1, torch.float32)
    setting.table[0, 1] = 1 << 20
    out = setting.run(module)
    assert out[0].isnan().all() and not out[1].isnan().any()
    with pytest.raises(IndexError, match="pages outside"):
        setting.exact(module)
    setting = Setting(module, [70, 9], 1, torch.float32)
    setting.lengths[1] = 1000
    out = setting.run(module)
    assert out[1].isnan().all() and not out[0].isnan().any()
    with pytest.raises(IndexError, match="longer than"):
        setting.exact(module)


FAULTS = {
    "values are keys": ("k_ptrs + J * N", "k_ptrs"),
    "the next head's keys": ("+ kv_head * N + offs_d", "+ (kv_head + 1) % J * N + offs_d"),
    "all queries see all": ("visible = length - num_queries + offs_m // G + 1", "visible = length + offs_m * 0"),
    "a tile stops a token early": (
        "tl.max(tl.where(mask_m, visible, 0)))",
        "tl.max(tl.where(mask_m, visible, 0)) - 1)",
    ),
    "the sum is not scaled": ("acc * alpha[:, None]", "acc"),
    "splits weigh alike": ("weight = tl.exp2(tl.load(lse_ptr + partial_row) - m_i)", "weight = 1.0"),
    "another group's heads": ("H + kv_head * G + offs_m % G", "H + (J - 1 - kv_head) * G + offs_m % G"),
    "rows before the first are seen": (" & (offs_n >= begins)[None, :]", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    module = mutated(*FAULTS[fault])
    split_into(monkeypatch, module, 3)
    with pytest.raises(AssertionError):
        check(module, [5, 70, 200], 3, begins=2)
