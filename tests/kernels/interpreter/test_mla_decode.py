"""kernels/mla_decode.py in the interpreter: absorbed attention over pages, against itself in float64 and the model."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from kernels.lab import calc_diff, randn, spec_with
from kernels.paged import kernels, mutated, poisoned_cache, turns
from torch import Tensor

from dsc.compiler.driver import build, emit

FP32, BF16 = 1e-11, 1e-5
PAGE_EDGES = [1, 63, 64, 65, 127, 128, 129]
FP8 = {"attention__kv_lora_rank": 256}
NO_PAGE = 1 << 30  # in the table behind a sequence's pages


class Setting:
    """Sequences in shuffled pages, all else NaN, and queries for them."""

    def __init__(
        self, modules: list[ModuleType], lengths: list[int], queries: int, q: torch.dtype, rows: torch.dtype
    ) -> None:
        write, decode = modules
        generator = torch.Generator().manual_seed(len(lengths) + queries)
        counts = [-(-length // 64) for length in lengths]
        pages = torch.randperm(sum(counts) + 3, generator=generator)[: sum(counts)].split(counts)
        self.cache = poisoned_cache(write, sum(counts) + 3, rows)
        self.block_table = torch.full((len(lengths), max(counts) + 2), NO_PAGE, dtype=torch.int32)
        for index, mine in enumerate(pages):
            self.block_table[index, : len(mine)] = mine
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        slots = torch.cat(
            [torch.arange(n) % 64 + mine.repeat_interleave(64)[:n] * 64 for n, mine in zip(lengths, pages, strict=True)]
        )
        kv = randn(len(slots), write.KV_LORA_RANK + write.QK_ROPE_HEAD_DIM, dtype=rows, seed=1)
        positions = torch.arange(len(slots)) % 40
        weight = torch.ones(write.KV_LORA_RANK)
        latents = (randn(len(slots), write.Q_LORA_RANK), torch.ones(write.Q_LORA_RANK))
        write.reference(kv, weight, *latents, turns(write, 40), positions, slots, self.cache)
        shape = (len(lengths), queries, decode.NUM_HEADS)
        self.q_latent = randn(*shape, write.KV_LORA_RANK, dtype=q, seed=2)
        self.q_rope = randn(*shape, write.QK_ROPE_HEAD_DIM, dtype=q, seed=3)

    def run(self, decode: Callable[..., Tensor]) -> Tensor:
        return decode(self.q_latent, self.q_rope, self.cache, self.block_table, self.lengths)

    def exact(self, module: ModuleType) -> Tensor:
        return module.reference(
            self.q_latent.double(), self.q_rope.double(), self.cache, self.block_table, self.lengths
        )


def check(
    modules: list[ModuleType],
    lengths: list[int],
    queries: int = 1,
    q: torch.dtype = torch.float32,
    rows: torch.dtype = torch.float32,
    bound: float = FP32,
) -> None:
    module = modules[1]
    setting = Setting(modules, lengths, queries, q, rows)
    assert calc_diff(setting.run(module.mla_decode), setting.exact(module)) <= bound


def split_into(monkeypatch: pytest.MonkeyPatch, module: ModuleType, splits: int) -> None:
    """Splits of one tile at least, so that short sequences have several."""
    monkeypatch.setattr(module, "num_splits", lambda batch, rows, tokens: splits)
    monkeypatch.setattr(module, "MIN_SPLIT", module.SPLIT["BLOCK_N"])


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_page_edges_together_in_one_batch(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    modules = kernels("plain")
    split_into(monkeypatch, modules[1], splits)
    check(modules, PAGE_EDGES)
    check(modules, PAGE_EDGES, q=torch.bfloat16, rows=torch.bfloat16, bound=BF16)


def test_every_length_to_300(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them whole, and every seventh in splits."""
    modules = kernels("plain", attention__num_attention_heads=2)
    check(modules, list(range(1, 301)))
    split_into(monkeypatch, modules[1], 4)
    check(modules, list(range(7, 301, 7)))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("queries", [2, 3, 9])
def test_several_query_tokens(monkeypatch: pytest.MonkeyPatch, queries: int, splits: int) -> None:
    """Also more rows than a tile has, and a split of which the first queries see nothing."""
    modules = kernels("plain")
    split_into(monkeypatch, modules[1], splits)
    check(modules, [queries, 33, 65, 130], queries)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("q", [torch.float32, torch.bfloat16])
def test_fp8_rows(monkeypatch: pytest.MonkeyPatch, q: torch.dtype, splits: int) -> None:
    modules = kernels("fp8", **FP8)
    split_into(monkeypatch, modules[1], splits)
    check(modules, PAGE_EDGES, 2, q, torch.bfloat16, BF16 if q is torch.bfloat16 else FP32)


PAGES = [
    ("plain", 1),
    ("plain", 16),
    ("plain", 32),
    ("plain", 96),
    ("plain", 128),
    ("fp8", 1),
    ("fp8", 16),
    ("fp8", 96),
]


@pytest.mark.parametrize(("rows", "page"), PAGES)
def test_pages_of_other_sizes_than_a_tile(rows: str, page: int) -> None:
    """Smaller, larger but not by whole tiles, and of several tiles: the same rows there give the same bits."""
    modules = kernels(rows, **FP8)
    assert page != modules[1].SPLIT["BLOCK_N"]
    setting = Setting(modules, [1, 63, 65, 130], 2, torch.float32, torch.bfloat16)
    expected = setting.run(modules[1].mla_decode)
    counts = -(-setting.lengths // page)
    pages = torch.arange(int(counts.sum())).flip(0).split(counts.tolist())
    table = torch.full((len(counts), int(counts.max()) + 2), NO_PAGE, dtype=torch.int32)
    cache = poisoned_cache(modules[0], 1, torch.bfloat16)[:, :1].repeat(int(counts.sum()), page, 1)
    for index, (mine, length) in enumerate(zip(pages, setting.lengths.tolist(), strict=True)):
        token = torch.arange(length)
        cache[mine[token // page], token % page] = setting.cache[setting.block_table[index, token // 64], token % 64]
        table[index, : len(mine)] = mine
    setting.cache, setting.block_table = cache, table
    assert torch.equal(setting.run(modules[1].mla_decode), expected)
    assert calc_diff(expected, setting.exact(modules[1])) <= FP32


def test_queries_wider_than_the_rows() -> None:
    check(kernels("plain"), [1, 65], 2, torch.float32, torch.bfloat16, FP32)


@pytest.mark.parametrize("splits", [1, 3])
def test_queries_that_see_nothing_give_zeros(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """An empty sequence fills up a batch of a captured graph; fewer tokens than queries are no error either."""
    modules = kernels("plain")
    module = modules[1]
    split_into(monkeypatch, module, splits)
    setting = Setting(modules, [1, 2, 70], 3, torch.float32, torch.float32)
    setting.lengths[0] = 0
    out, exact = setting.run(module.mla_decode), setting.exact(module)
    assert calc_diff(out, exact) <= FP32
    assert not out[0].any() and not out[1, 0].any() and bool(out[1, 1].any())


@pytest.mark.parametrize("rows", ["plain", "fp8"])
def test_rows_before_the_first_are_never_seen(monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    """The layer that guesses writes its rows from the second position on."""
    modules = kernels(rows, **FP8)
    split_into(monkeypatch, modules[1], 2)
    setting = Setting(modules, [1, 2, 130], 1, torch.float32, torch.bfloat16)
    arguments = (setting.cache, setting.block_table, setting.lengths, 1)
    expected = modules[1].reference(setting.q_latent.double(), setting.q_rope.double(), *arguments)
    setting.cache[setting.block_table[:, 0].long(), 0] = 255 if rows == "fp8" else float("nan")
    out = modules[1].mla_decode(setting.q_latent, setting.q_rope, *arguments)
    assert calc_diff(out, expected) <= FP32 and not out[0].any() and bool(out[1].any())


@pytest.mark.parametrize("splits", [1, 2])
def test_a_tile_stops_at_the_last_token_that_it_sees(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """What it would read in vain, 0 * NaN, would show."""
    modules = kernels("plain")
    split_into(monkeypatch, modules[1], splits)
    queries = modules[1].SPLIT["BLOCK_M"] // modules[1].NUM_HEADS + 1  # of which the last is in a tile of its own
    setting = Setting(modules, [130], queries, torch.float32, torch.float32)
    expected = setting.run(modules[1].mla_decode)
    setting.cache[setting.block_table[0, 2], 1] = float("nan")
    out = setting.run(modules[1].mla_decode)
    assert torch.equal(out[:, :-1], expected[:, :-1]) and out[:, -1].isnan().all()


def test_no_sequences() -> None:
    write, module = kernels("plain")
    setting = Setting([write, module], [3], 1, torch.float32, torch.float32)
    arguments = (setting.q_latent[:0], setting.q_rope[:0], setting.cache, setting.block_table[:0], setting.lengths[:0])
    assert module.mla_decode(*arguments).shape == (0, 1, 8, write.KV_LORA_RANK)


def test_splits_fill_the_processors() -> None:
    """128 heads are two tiles of rows; an H200 has 132 processors."""
    _, module = kernels("plain", "deepseek-v3")
    assert module.num_splits(128, 128, 4096) == 1  # 256 programs: two waves, nearly full
    assert module.num_splits(64, 128, 4096) == 1
    assert module.num_splits(1, 128, 131072) * 2 >= 0.85 * 132
    assert 0.85 * 4096 <= module.num_splits(1, 128, 4096) * module.MIN_SPLIT <= 4096  # never shorter than that
    assert module.num_splits(1, 128, 64) == 1


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_absorbed_equals_expanded(emitted: Callable, layout: str) -> None:
    """In float64: the emitted model's attention, all keys and values built, is the absorbed form over pages."""
    for dtype, bound in ((torch.float64, 1e-24), (torch.float32, FP32)):
        check_absorbed(emitted, layout, dtype, bound)


def check_absorbed(emitted: Callable, layout: str, dtype: torch.dtype, bound: float) -> None:
    write, module = kernels("plain", attention__rope__layout=layout)
    model = emitted(emit(build(spec_with("tiny", {"attention.rope.layout": layout}))))("model")
    torch.manual_seed(0)
    attention = model.LatentAttention().double()
    for norm in (attention.q_a_layernorm, attention.kv_a_layernorm):
        torch.nn.init.normal_(norm.weight)
    batch, length = 2, 130
    x = randn(batch, length, model.HIDDEN_SIZE, dtype=torch.float64)
    table = model.rotary_table(length, x)
    expanded = attention(x, model.spread_pairs(table))
    attention, x, table = attention.to(dtype), x.to(dtype), table.to(dtype)

    pages = torch.tensor([[4, 0, 2], [1, 5, 3]], dtype=torch.int32)
    cache = poisoned_cache(write, 6, dtype)
    out, done = [], 0
    for new in (length - 4, 1, 3):  # a prompt, then one token, then several at once
        chunk, done = x[:, done : done + new], done + new
        lengths = torch.full((batch,), done, dtype=torch.int32)
        positions = torch.arange(done - new, done).expand(batch, -1)
        slots = pages.gather(1, positions // 64) * 64 + positions % 64
        out.append(absorbed(write, module, model, attention, chunk, table, positions, slots, cache, pages, lengths))
    assert calc_diff(torch.cat(out, 1), expanded) <= bound


def absorbed(
    write: ModuleType,
    module: ModuleType,
    model: ModuleType,
    attention: torch.nn.Module,
    x: Tensor,
    table: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: Tensor,
    pages: Tensor,
    lengths: Tensor,
) -> Tensor:
    """LatentAttention.forward over the paged cache, as inference is to have it."""
    q_latent = write.write_latent_cache(
        attention.kv_a_proj_with_mqa(x), attention.kv_a_layernorm.weight,
        attention.q_a_proj(x), attention.q_a_layernorm.weight, model.spread_pairs(table), positions, slots, cache,
    )  # fmt: skip
    q = attention.q_b_proj(q_latent).unflatten(-1, (model.NUM_HEADS, model.QK_HEAD_DIM))  # [B, S, H, N + R]
    q_nope, q_rope = q.split((model.QK_NOPE_HEAD_DIM, model.QK_ROPE_HEAD_DIM), -1)
    q_rope = model.rotate(q_rope, model.spread_pairs(table[:, positions[0]]))

    kv_b = attention.kv_b_proj.weight.unflatten(0, (model.NUM_HEADS, model.QK_NOPE_HEAD_DIM + model.V_HEAD_DIM))
    w_uk, w_uv = kv_b.split((model.QK_NOPE_HEAD_DIM, model.V_HEAD_DIM), 1)  # [H, N, L], [H, V, L]
    q_absorbed = torch.einsum("bshn,hnl->bshl", q_nope, w_uk)
    out_latent = module.mla_decode(q_absorbed, q_rope, cache, pages, lengths)
    out = torch.einsum("bshl,hvl->bshv", out_latent, w_uv)
    return attention.o_proj(out.flatten(-2))


@pytest.mark.parametrize("rows", ["plain", "fp8"])
def test_operator(rows: str) -> None:
    """Schema, and shapes and types under FakeTensor."""
    modules = kernels(rows, **FP8)
    setting = Setting(modules, [5, 66], 2, torch.float32, torch.float32)
    setting.cache = setting.cache.nan_to_num()
    arguments = (setting.q_latent, setting.q_rope, setting.cache, setting.block_table, setting.lengths, 0)
    torch.library.opcheck(modules[1]._decode, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "length mask dropped": ("tl.minimum(visible, end)[:, None]) &", "(end + 64)) &"),
    "queries see the future": ("tl.minimum(visible, end)[:, None]) &", "end) &"),
    "offset in the page wrong": ("offs_n % PAGE", "offs_n % (PAGE // 2)"),
    "page of the tile before": ("start_n // PAGE if", "tl.maximum(start_n - BLOCK_N, 0) // PAGE if"),
    "combined without weights": ("acc += weight * tl.load(partial_ptr", "acc += 0.5 * tl.load(partial_ptr"),
    "not rescaled to the new maximum": ("acc * alpha[:, None]", "acc"),
    "lse without the sum": ("m_i + tl.log2(l_i)", "m_i"),
    "k_rope left out": ("tl.trans(k_rope), scores,", "tl.trans(k_rope) * 0.0, scores,"),
    "unwritten rows read": ("L + offs_l[None, :], mask=mask_n, other=0.0", "L + offs_l[None, :]"),
    "scale": ("SCALE_LOG2 = ATTENTION_SCALE * math.log2(math.e)", "SCALE_LOG2 = ATTENTION_SCALE"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    modules = mutated("mla_decode", *FAULTS[fault], "plain")
    split_into(monkeypatch, modules[1], 2)
    with pytest.raises(AssertionError):
        check(modules, [65, 130], 2)


FP8_FAULTS = {
    "scales dropped": ("codes.to(tl.float32) * scales[:, :, None]", "codes.to(tl.float32) + 0 * scales[:, :, None]"),
    "scales swapped": ("L // 4 + group[None, :]", "L // 4 + (L // GROUP - 1 - group)[None, :]"),
    "scale of another row": ("token[:, None] * (ROW // 4)", "(token // 2 * 2)[:, None] * (ROW // 4)"),
}


@pytest.mark.parametrize("fault", FP8_FAULTS)
def test_a_planted_fault_of_fp8_rows_is_caught(fault: str) -> None:
    with pytest.raises(AssertionError):
        check(mutated("mla_decode", *FP8_FAULTS[fault], "fp8", **FP8), [65, 130], 2, rows=torch.bfloat16)
