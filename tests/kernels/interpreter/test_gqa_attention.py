"""kernels/gqa_attention.py in the interpreter, forward and backward, against plain formulas in float64."""

from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels.interpreter.test_mla_attention import BOUNDS, DOCUMENTS, UNLIKE, starts_of
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with, with_fault
from kernels.watched import Race, watched
from torch import Tensor

NAMES = ("gqa_attention", "gqa_attention_backward")
SHAPES = {
    "two on one": (2, 1, 16),
    "six on two": (6, 2, 16),
    "each its own": (2, 2, 32),
    "of 40": (4, 2, 40),
    "of 8": (3, 1, 8),
}
"""Query heads, key heads, and how wide they are."""
SCALE = 0.21
"""No head's own, so that it is seen where it comes from."""


def keys(shape: str) -> dict[str, Any]:
    heads, kv_heads, width = SHAPES[shape]
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return {f"attention.{name}": size for name, size in zip(names, (heads, kv_heads, width), strict=True)}


def attention(shape: str, arch: str = "sm_90") -> ModuleType:
    """sm_90 loads tiles by descriptors where heads need no padding, sm_80 by pointers."""
    changes = {key.replace(".", "__"): value for key, value in keys(shape).items()}
    return kernels(NAMES, "llama-3.1-8b", arch, training__documents="apart", **changes)[0]


def in_window(arch: str = "sm_90", documents: str = "apart") -> ModuleType:
    changes = {key.replace(".", "__"): value for key, value in keys("two on one").items()}
    return kernels(NAMES, "mistral-7b", arch, training__documents=documents, **changes)[0]


def of_two_kinds(arch: str = "sm_90", documents: str = "apart") -> ModuleType:
    """Some layers see a window, others all of a document."""
    return kernels(NAMES, "tiny-window", arch, training__documents=documents)[0]


def formula(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> Tensor:
    """As it is written down, a query head with the key head that it shares."""
    places = torch.arange(q.shape[1])
    seen = (starts.unsqueeze(-1) <= places) & (places <= places[:, None])  # [B, query, key]
    shared = q.shape[2] // k.shape[2]
    heads = []
    for head in range(q.shape[2]):
        scores = q[:, :, head] @ k[:, :, head // shared].mT * scale
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, :, head // shared])
    return torch.stack(heads, 2)


def check(module: ModuleType, shape: str, starts: Tensor, dtype: torch.dtype, run: Any = None) -> None:
    """out and the three gradients, within the bound of calc_diff; the inputs lie between NaNs."""
    heads, kv_heads, width = SHAPES[shape]
    batch, length = starts.shape
    given = [
        poisoned(randn(batch, length, count, width, dtype=dtype, seed=seed)).requires_grad_()
        for seed, count in enumerate((heads, kv_heads, kv_heads))
    ]
    dout = randn(batch, length, heads, width, dtype=dtype, seed=5)
    out = run(*given) if run else module.document_attention(*given, poisoned(starts), SCALE)
    actual = torch.autograd.grad(out, given, dout)

    wide = [t.detach().double().requires_grad_() for t in given]
    exact = formula(*wide, starts, SCALE)
    expected = torch.autograd.grad(exact, wide, dout.double())
    assert out.dtype == dtype and calc_diff(out, exact) <= BOUNDS[dtype]
    for a, e, t in zip(actual, expected, given, strict=True):
        assert a.dtype == dtype and a.shape == t.shape
        if e.abs().max() < 1e-9:  # a softmax over one key does not move
            assert a.abs().max() < 1e-4
        else:
            assert calc_diff(a, e) <= BOUNDS[dtype]


@pytest.mark.parametrize("documents", DOCUMENTS)
def test_documents_are_as_if_alone(documents: str) -> None:
    """float32 where documents of one token, whose q and k do not move, leave nothing but rounding."""
    dtype = torch.float32 if documents == "of one token" else torch.bfloat16
    check(attention("two on one"), "two on one", starts_of([DOCUMENTS[documents]]), dtype)


@pytest.mark.parametrize("documents", ["of odd lengths", "begun by the last token of a tile"])
def test_loaded_by_pointers(documents: str) -> None:
    check(attention("two on one", "sm_80"), "two on one", starts_of([DOCUMENTS[documents]]), torch.bfloat16)


@pytest.mark.parametrize(("arch", "dtype"), [("sm_90", torch.bfloat16), ("sm_80", torch.float32)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_have_documents_of_their_own(shape: str, arch: str, dtype: torch.dtype) -> None:
    check(attention(shape, arch), shape, starts_of([[7, 63], [1, 1, 68]]), dtype)


@pytest.mark.parametrize(("arch", "dtype"), [("sm_90", torch.bfloat16), ("sm_80", torch.float32)])
def test_rows_of_several_tiles_have_documents_of_their_own(arch: str, dtype: torch.dtype) -> None:
    """No program leaves its tensors or meets another."""
    with watched():
        check(attention("two on one", arch), "two on one", starts_of(UNLIKE), dtype)


def test_the_references_equal_the_formula() -> None:
    """float64 runs them wherever it is."""
    check(attention("six on two"), "six on two", starts_of([[7, 30], [37], [1, 1, 35]]), torch.float64)


@pytest.mark.parametrize("length", [1, 2, 16, 65, 129])
def test_a_row_of_one_document_at_any_length(length: int) -> None:
    dtype = torch.float32 if length < 3 else torch.bfloat16
    check(attention("two on one"), "two on one", torch.zeros(1, length, dtype=torch.int32), dtype)


WINDOWS = [(1, "apart"), (63, "apart"), (64, "apart"), (65, "apart"), (150, "joined"), (50, "joined"), (1000, "apart")]


@pytest.mark.parametrize(("window", "documents"), WINDOWS)
def test_a_window(window: int, documents: str) -> None:
    """Of rows that hold documents or not. A window of one token moves no q and no k: float32 there."""
    dtype = torch.float32 if window < 3 else torch.bfloat16
    module = in_window(documents=documents)
    first = torch.arange(1 - window, 301 - window).clamp(min=0).int().expand(2, 300)
    check(module, "two on one", first, dtype, lambda *x: module.windowed_attention(*x, window, SCALE))


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_a_window_within_documents(arch: str) -> None:
    module, starts = in_window(arch), starts_of([DOCUMENTS["of odd lengths"], DOCUMENTS["as long as tiles"]])
    first = torch.maximum(starts, torch.arange(-49, 251)).int()
    run = partial(windowed_in_documents, module, starts, 50)
    check(module, "two on one", first, torch.bfloat16, run)


def windowed_in_documents(module: ModuleType, starts: Tensor, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return module.windowed_document_attention(q, k, v, starts, window, SCALE)


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_one_file_for_layers_with_a_window_and_without(arch: str) -> None:
    """Each call says which it is: two windows, whole documents, and a window within them."""
    module, starts = of_two_kinds(arch), starts_of([[7, 63, 90]])
    check(module, "each its own", starts, torch.bfloat16)
    for window in (20, 70):
        first = torch.arange(1 - window, 161 - window).clamp(min=0).int().unsqueeze(0)
        check(module, "each its own", first, torch.bfloat16, lambda *x: module.windowed_attention(*x, window, SCALE))  # noqa: B023
        run = partial(windowed_in_documents, module, starts, window)
        check(module, "each its own", torch.maximum(starts, first), torch.bfloat16, run)


def test_without_documents_only_layers_with_a_window_call_it() -> None:
    """What sees all keys before it is left to PyTorch's operator."""
    assert not hasattr(of_two_kinds(documents="joined"), "document_attention")
    assert not hasattr(of_two_kinds(documents="joined"), "windowed_document_attention")


def test_an_expanded_gradient() -> None:
    """The gradient of a sum has no memory of its own."""
    module, starts = attention("six on two"), starts_of([[7, 13]])
    q, k, v = randn(1, 20, 6, 16).requires_grad_(), randn(1, 20, 2, 16), randn(1, 20, 2, 16)
    out = module.document_attention(q, k, v, starts, SCALE)
    grads = [
        torch.autograd.grad(out, q, dout, retain_graph=True)[0]
        for dout in (torch.ones(1).expand(out.shape), torch.ones(out.shape))
    ]
    assert torch.equal(*grads) and grads[0].isfinite().all()


def test_no_tokens() -> None:
    module = attention("six on two")
    for dtype in (torch.float32, torch.float64):  # the kernels, and the reference
        given = [torch.empty(1, 0, heads, 16, dtype=dtype).requires_grad_() for heads in (6, 2, 2)]
        out = module.document_attention(*given, torch.empty(1, 0, dtype=torch.int32), SCALE)
        assert out.shape == (1, 0, 6, 16)
        assert [g.shape for g in torch.autograd.grad(out.sum(), given)] == [t.shape for t in given]


def test_fake_tensors_are_like_real_ones() -> None:
    module = attention("six on two")
    given = (randn(1, 20, 6, 16), randn(1, 20, 2, 16), randn(1, 20, 2, 16), starts_of([[7, 13]]))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(module._forward, (*given, SCALE), test_utils=tests)
    out, lse = module._forward(*given, SCALE)
    torch.library.opcheck(module.backward, (randn(*out.shape), *given, out, lse, SCALE), test_utils=tests)


FORWARD, BACKWARD, ROWS = "gqa_attention", "gqa_attention_backward", "attention_rows"
FAULTS = {
    "the key before a document is seen": (FORWARD, "first[:, None] <= keys)", "first[:, None] <= keys + 1)"),
    "a query sees the next key": (FORWARD, "offs_m[:, None] >= keys)", "offs_m[:, None] + 1 >= keys)"),
    "another key head": (FORWARD, "kv_head = head // (H // J)", "kv_head = head % J"),
    "a block that is hidden from a query": (FORWARD, "-1e30", 'float("-inf")'),
    "the sum of exponentials is not rescaled": (FORWARD, "l_i * alpha + ", "l_i + "),
    "a scale of its own": (FORWARD, "SCALE_LOG2=scale * LOG2_E", "SCALE_LOG2=width**-0.5 * LOG2_E"),
    "gradients by a scale of their own": (BACKWARD, '"SCALE": scale', '"SCALE": width**-0.5'),
    "lse without the maximum": (FORWARD, "m_i + tl.log2(l_i)", "tl.log2(l_i)"),
    "blocks of keys are skipped": (
        FORWARD,
        "tl.range(from_all, start_m, BLOCK_N)",
        "tl.range(from_all, start_m, 2 * BLOCK_N)",
    ),
    "so the key before a document is in dq": (BACKWARD, "first[:, None] <= keys)", "first[:, None] <= keys + 1)"),
    "so the next key is in dq": (BACKWARD, "offs_m[:, None] >= keys)", "offs_m[:, None] + 1 >= keys)"),
    "dq of another key head": (BACKWARD, "kv_head = head // (H // J)", "kv_head = head % J"),
    "dq without the scale": (BACKWARD, "dq * SCALE", "dq"),
    "delta of no head but the first": (BACKWARD, "delta_ptr + plane + offs_m, delta", "delta_ptr + offs_m, delta"),
    "dk of the key before a document": (BACKWARD, "first[None, :] <= keys)", "first[None, :] <= keys + 1)"),
    "dk of the next key": (BACKWARD, "offs_m[None, :] >= keys", "offs_m[None, :] + 1 >= keys"),
    "dk of the first of its heads": (BACKWARD, "(kv_head + 1) * (H // J)", "kv_head * (H // J) + 1"),
    "dk of other heads": (BACKWARD, "range(kv_head * (H // J), (kv_head + 1) * (H // J))", "range(kv_head, H, J)"),
    "dk without delta": (BACKWARD, "tl.broadcast_to(-delta[None, :]", "tl.broadcast_to(0 * delta[None, :]"),
    "queries past the end": (
        BACKWARD,
        'mask=offs_m < end, other=float("inf"))\n            scores',
        "mask=offs_m < end, other=0.0)\n            scores",
    ),
    "the last queries of a document are cut off": (BACKWARD, "right=True", "right=False"),
    "the block in which a document begins": (ROWS, "begin + from_n,", "begin + from_n + BLOCK_N,"),
    "blocks that some see take no mask": (ROWS, "begin + from_all, start_m", "begin + from_n, start_m"),
    "rows after the first begin at its tokens": (ROWS, "return begin + own", "return own"),
    "blocks by the documents of the first row": (
        ROWS,
        "tl.load(starts_ptr + start_m), 0)",
        "tl.load(starts_ptr + start_m - begin), 0)",
    ),
}


FEW = ("the key before a document is seen", "a query sees the next key", "another key head", "dk of other heads")
SWEPT = [pytest.param(fault, marks=[] if fault in FEW else pytest.mark.slow) for fault in FAULTS]


@pytest.mark.parametrize("fault", SWEPT)
def test_a_planted_fault_is_caught(fault: str) -> None:
    name, old, new = FAULTS[fault]
    files = printed(NAMES, spec_with("llama-3.1-8b", {**keys("six on two"), "training.documents": "apart"}))
    assert files[f"{name}.py"].count(old) == 1, fault
    files[f"{name}.py"] = files[f"{name}.py"].replace(old, new)
    (module,) = package(files, NAMES[:1])
    with pytest.raises(AssertionError):
        check(module, "six on two", starts_of([[7, 63], [1, 1, 68]]), torch.bfloat16)
        check(module, "six on two", starts_of(UNLIKE), torch.bfloat16)


def test_a_window_that_is_a_token_too_wide_is_caught() -> None:
    module = in_window()
    first = torch.arange(-63, 37).clamp(min=0).int().expand(1, 100)
    with pytest.raises(AssertionError):
        check(module, "two on one", first, torch.bfloat16, lambda *x: module.windowed_attention(*x, 65, SCALE))


def test_heads_that_add_to_dk_without_order_are_a_race() -> None:
    """A program for each head, as forward has them, that adds to what the others of its group wrote."""
    spec = spec_with("llama-3.1-8b", {**keys("six on two"), "training.documents": "apart"})
    starts = starts_of([[7, 13]])
    arguments = [randn(1, 20, heads, 16, seed=heads) for heads in (6, 2, 2)]

    def backward(module: ModuleType) -> None:
        out, lse = module._forward(*arguments, starts, SCALE)
        with watched():
            module.backward(out, *arguments, starts, out, lse, SCALE)

    files = printed(NAMES, spec)
    backward(package(files, NAMES[:1])[0])
    files = with_fault(files, "keys_kernel[(k.shape[2], ", "keys_kernel[(heads, ")
    files = with_fault(files, "kv_head = tl.program_id(0)", "kv_head = tl.program_id(0) // (H // J)")
    with pytest.raises(Race, match="gqa_attention_backward_keys_kernel"):
        backward(package(files, NAMES[:1])[0])
