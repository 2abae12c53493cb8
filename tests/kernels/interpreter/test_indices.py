"""Indices that point nowhere, in the interpreter: NaN for what they belong to, nothing read or written out of range."""

from functools import partial
from types import ModuleType

import pytest
import torch
from kernels.interpreter import test_gqa_attention, test_mla_attention
from kernels.interpreter.test_mla_decode import Setting
from kernels.lab import calc_diff, kernels, randn
from kernels.paged import kernels as cache_kernels
from kernels.paged import turns
from kernels.watched import watched
from torch import Tensor

VOCAB, WIDTH = 600, 100


def head() -> ModuleType:
    return kernels(("linear_cross_entropy",), vocab_size=VOCAB, hidden_size=WIDTH)[0]


def loss_and_gradients(labels: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = randn(len(labels), WIDTH, dtype=dtype, seed=1).requires_grad_()
    weight = randn(VOCAB, WIDTH, dtype=dtype, seed=2).requires_grad_()
    loss = head().linear_cross_entropy(hidden, weight, torch.tensor(labels))
    return loss, *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("label", [-1, -101, VOCAB, VOCAB + 5, VOCAB + 500])
def test_an_unknown_label_gives_nan(label: int) -> None:
    """The loss, and the gradient of its own token alone; that of the weight sums over all tokens."""
    loss, dhidden, dweight = loss_and_gradients([3, label, -100, VOCAB - 1], torch.float32)
    assert loss.isnan() and dweight.isnan().all()
    assert dhidden.isnan().all(1).tolist() == [False, True, False, False] and not dhidden[[0, 2, 3]].isnan().any()
    with pytest.raises(IndexError, match="labels have to be"):
        loss_and_gradients([3, label], torch.float64)  # the reference, on a CPU


@pytest.mark.parametrize("fault", ["page", "negative page", "length"])
@pytest.mark.parametrize("rows", ["plain", "fp8"])
def test_a_page_outside_the_cache_gives_nan(rows: str, fault: str) -> None:
    """To its own sequence alone."""
    modules = cache_kernels(rows, attention__kv_lora_rank=128)
    setting = Setting(modules, [70, 70], 1, torch.float32, torch.float32)
    setting.block_table = setting.block_table[:, :2].contiguous()
    right = setting.run(modules[1].mla_decode)
    if fault == "length":
        setting.lengths[1] = 129
    else:
        setting.block_table[1, 1] = len(setting.cache) if fault == "page" else -1
    wrong = setting.run(modules[1].mla_decode)
    assert torch.equal(wrong[0], right[0]) and wrong[1].isnan().all()
    with pytest.raises(IndexError):
        setting.exact(modules[1])


STARTS = {
    "negative": (slice(140, 141), -1, [140]),
    "far before the row": (slice(128, 129), -(2**31), [128]),
    "behind its token": (slice(140, 150), 145, [140, 141, 142, 143, 144]),
    "out of order": (slice(140, 141), 20, [140]),
    "far behind the row": (slice(140, 141), 2**31 - 1, [140]),
}
"""Tokens of the second row whose documents begin elsewhere than at 0, where, and which of them cannot."""


@pytest.mark.parametrize("fault", STARTS)
@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_a_document_that_begins_nowhere_gives_nan(kind: str, arch: str, fault: str) -> None:
    """To its own tokens alone, in the gradient of q too. Nothing beside the tensors is read."""
    if kind == "gqa":
        module = test_gqa_attention.attention("two on one", arch)
        attend = partial(module.document_attention, scale=test_gqa_attention.SCALE)
        given = [randn(2, 150, heads, 16, seed=heads) for heads in (2, 1, 1)]
    else:
        module = test_mla_attention.attention("one head", arch, "apart")
        attend = module.document_attention
        nope, rotary, v = module.QK_NOPE_HEAD_DIM, module.QK_ROPE_HEAD_DIM, module.V_HEAD_DIM
        given = [randn(2, 150, 1, width, seed=width) for width in (nope + rotary, nope + v, rotary)]
        given.append(test_mla_attention.rope_table(module, "one head", 150))
    tokens, start, unknown = STARTS[fault]
    known = torch.ones(2, 150, dtype=torch.bool)
    known[1, unknown] = False
    right, wrong = torch.zeros(2, 2, 150, dtype=torch.int32)
    wrong[1, tokens] = start
    if len(unknown) > 1:
        right[1, tokens] = torch.arange(150, dtype=torch.int32)[tokens].clamp(max=start)
    given[0].requires_grad_()
    with watched():
        out = attend(*given, wrong)
        (dq,) = torch.autograd.grad(out, given[0], torch.ones_like(out))
    for found in (out, dq):
        assert torch.equal(found.isnan().all(3).all(2), ~known) and torch.equal(found.isnan().any(3).any(2), ~known)
    wide = [t.detach().double() for t in given]
    assert calc_diff(out[known], attend(*wide, right)[known]) < 1e-11
    with pytest.raises(IndexError, match="documents have to begin"):
        attend(*wide, wrong)


def written(positions: list[int], slots: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What the write returns and leaves, of three tokens in a cache of one page."""
    write = cache_kernels("plain")[0]
    kv = randn(3, write.KV_LORA_RANK + write.QK_ROPE_HEAD_DIM).to(dtype)
    weight, q_weight = torch.ones(write.KV_LORA_RANK, dtype=dtype), torch.ones(write.Q_LORA_RANK, dtype=dtype)
    cache = write.empty_cache(1, kv).zero_()
    q_latent = randn(3, write.Q_LORA_RANK).to(dtype)
    arguments = (kv, weight, q_latent, q_weight, turns(write, 10), torch.tensor(positions), torch.tensor(slots))
    return write.write_latent_cache(*arguments, cache), cache[0]


@pytest.mark.parametrize("slot", [64, 1000, -2])
def test_a_slot_outside_the_cache_gives_nan_and_writes_nothing(slot: int) -> None:
    q_latent, cache = written([0, 1, 2], [5, slot, -1])
    assert q_latent.isnan().all(1).tolist() == [False, True, False]
    assert cache.any(1).nonzero().flatten().tolist() == [5]
    with pytest.raises(IndexError, match="slots"):
        written([0, 1, 2], [5, slot, -1], torch.float64)


@pytest.mark.parametrize("position", [10, -1])
def test_a_position_outside_rope_gives_nan(position: int) -> None:
    write = cache_kernels("plain")[0]
    _, cache = written([0, position, 2], [5, 6, 7])
    assert cache[6, write.KV_LORA_RANK :].isnan().all() and not cache[[5, 7]].isnan().any()
    with pytest.raises(IndexError, match="positions"):
        written([0, position, 2], [5, 6, 7], torch.float64)


@pytest.mark.parametrize("unknown", [-1, 4, 5, 1000, -1000, 2**32 + 1])
def test_an_id_of_no_expert_gives_nan_and_no_row(unknown: int) -> None:
    """To its own token alone. Others keep the rows that they would have without it."""
    (module,) = kernels(("expert_dispatch",))
    experts = torch.arange(300).remainder(4).view(150, 2)
    experts[[1, 80], [0, 1]] = unknown
    order, position, ends = module.sort_by_expert(experts, 4)
    known = (experts >= 0) & (experts < 4)
    slots = experts.flatten().where(known.flatten(), 4).argsort(stable=True)[: known.sum()]
    assert torch.equal(order[: ends[-1]], slots.int()) and ends[-1] == known.sum() == 298
    assert torch.equal(position >= 0, known) and position[~known].tolist() == [-1, -1]
    assert torch.equal(order[position[known].long()], torch.arange(300, dtype=torch.int32).view(150, 2)[known])

    rows = randn(300, WIDTH).requires_grad_()
    y = module.combine(rows, position, None)
    assert y.isnan().all(1).nonzero().flatten().tolist() == [1, 80] and y.isnan().any(1).sum() == 2
    (drows,) = torch.autograd.grad(y, rows, torch.ones_like(y))
    assert drows[: ends[-1]].eq(1).all() and drows[ends[-1] :].isnan().all()  # never written: fresh memory is NaN


def test_what_sorts_experts_writes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs lie in larger memory, which is compared afterwards."""
    (module,) = kernels(("expert_dispatch",))
    guards: list[Tensor] = []

    def between(x: Tensor) -> Tensor:
        memory = torch.full((x.numel() + 8192,), -77, dtype=x.dtype)
        guards.extend((memory[:4096], memory[-4096:]))
        return memory[4096:-4096].view(x.shape)

    make = module._sorted_like
    monkeypatch.setattr(module, "_sorted_like", lambda experts, count: tuple(map(between, make(experts, count))))
    module.sort_by_expert(torch.tensor([[0, 4], [3, -5], [1000, 2], [2**32, 1]]), 4)
    assert len(guards) == 6 and all(bool(guard.eq(-77).all()) for guard in guards)


def test_an_id_of_no_expert_is_refused_on_a_cpu() -> None:
    (module,) = kernels(("expert_dispatch",))
    for expert in (-1, 4):
        with pytest.raises(IndexError, match="ids of experts"):
            module.reference_sort(torch.tensor([[0, expert]]), 4)
