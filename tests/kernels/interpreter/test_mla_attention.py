"""kernels/mla_attention.py in the interpreter, forward and backward, against plain formulas in float64."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with
from kernels.watched import watched
from torch import Tensor

NAMES = ("mla_attention", "mla_attention_backward", "mla_common")
BOUNDS = {torch.bfloat16: 1e-5, torch.float32: 1e-12, torch.float64: 1e-14}
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300]
SHAPES: dict[str, dict[str, Any]] = {
    "one head": {"num_attention_heads": 1},
    "three heads": {"num_attention_heads": 3},
    "halves": {"num_attention_heads": 2, "rope__layout": "half"},
    "narrow v": {"num_attention_heads": 2, "v_head_dim": 16},
    "v of 48, rope of 8": {"num_attention_heads": 2, "v_head_dim": 48, "qk_rope_head_dim": 8},
    "nope of 40": {"num_attention_heads": 1, "qk_nope_head_dim": 40, "qk_rope_head_dim": 32},
}


DOCUMENTS = {
    "of odd lengths": [1, 63, 2, 64, 1, 1, 130, 38],
    "one": [300],
    "of one token": [1] * 300,
    "a long one last": [5, 295],
    "a long one first": [299, 1],
    "as long as tiles": [128, 128, 44],
    "begun by the last token of a tile": [127, 100, 73],
}
"""Lengths of the documents of a row."""
UNLIKE = [DOCUMENTS[name] for name in ("begun by the last token of a tile", "one", "of odd lengths")]
"""Rows of which each begins documents before and after the others do, in tiles of their own."""


def attention(shape: str, arch: str = "sm_90", documents: str = "joined") -> ModuleType:
    """sm_90 loads tiles by descriptors where no head dim needs padding, sm_80 by pointers."""
    return kernels(NAMES, arch=arch, **_keys(shape), training__documents=documents)[0]


def _keys(shape: str) -> dict[str, Any]:
    return {f"attention__{key}": value for key, value in SHAPES[shape].items()}


def rope_table(module: ModuleType, shape: str, length: int) -> Tensor:
    """cos and signed sin of made-up angles, spread over the components of each pair: [2, length, R]."""
    angles = 7 * randn(length, module.QK_ROPE_HEAD_DIM // 2, seed=11)
    sin = angles.sin()
    if "rope__layout" in SHAPES[shape]:
        return torch.stack((torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-sin, sin), -1)))
    return torch.stack((torch.stack((angles.cos(), angles.cos()), -1), torch.stack((-sin, sin), -1))).flatten(-2)


def formula(module: ModuleType, half: bool, q: Tensor, kv: Tensor, k_rope: Tensor, rope: Tensor) -> Tensor:
    """Attention of one sequence as it is written down, with q's pairs as complex numbers."""
    nope, width = module.QK_NOPE_HEAD_DIM, module.QK_ROPE_HEAD_DIM
    order = torch.arange(width).view(2, -1).T.flatten() if half else torch.arange(width)  # pairs side by side
    turn = torch.complex(rope[0][:, order][:, ::2], rope[1][:, order][:, 1::2]).unsqueeze(1)
    pairs = torch.view_as_complex(q[..., nope:][..., order].unflatten(-1, (-1, 2)).contiguous())
    tail = torch.view_as_real(pairs * turn).flatten(-2)
    q = torch.cat((q[..., :nope], tail), -1)
    k = torch.cat((kv[..., :nope], k_rope[..., order].expand(-1, -1, q.shape[2], -1)), -1)
    scores = torch.einsum("bshd,bthd->bhst", q, k) * module.ATTENTION_SCALE
    hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
    return torch.einsum("bhst,bthv->bshv", scores.masked_fill(hidden, -math.inf).softmax(-1), kv[..., nope:])


def check(
    module: ModuleType,
    shape: str,
    batch: int,
    length: int,
    dtype: torch.dtype,
    documents: list[list[int]] | None = None,
) -> None:
    """out and the three gradients, within the bound of calc_diff; the inputs lie between NaNs."""
    heads = SHAPES[shape]["num_attention_heads"]
    widths = module.QK_NOPE_HEAD_DIM, module.QK_ROPE_HEAD_DIM, module.V_HEAD_DIM
    shapes = ((heads, widths[0] + widths[1]), (heads, widths[0] + widths[2]), (1, widths[1]))
    given = [
        poisoned(randn(batch, length, *shape, dtype=dtype, seed=seed)).requires_grad_()
        for seed, shape in enumerate(shapes)
    ]
    rope, dout = rope_table(module, shape, length), randn(batch, length, heads, widths[2], dtype=dtype, seed=5)
    if documents is None:
        out = module.mla_attention(*given, poisoned(rope))
    else:
        out = module.document_attention(*given, poisoned(rope), poisoned(starts_of(documents)))
    actual = torch.autograd.grad(out, given, dout)

    wide = [t.detach().double().requires_grad_() for t in given]
    half = "rope__layout" in SHAPES[shape]
    if documents is None:
        exact = formula(module, half, *wide, rope.double())
    else:
        exact = torch.cat(
            [
                of_documents(module, half, row, *(t[i : i + 1] for t in wide), rope.double())
                for i, row in enumerate(documents)
            ]
        )
    expected = torch.autograd.grad(exact, wide, dout.double())
    assert out.dtype == dtype and calc_diff(out, exact) <= BOUNDS[dtype]
    for a, e, t in zip(actual, expected, given, strict=True):
        assert a.dtype == dtype and a.shape == t.shape
        if e.abs().max() < 1e-9:  # a softmax over one key does not move
            assert a.abs().max() < 1e-4
        else:
            assert calc_diff(a, e) <= BOUNDS[dtype]


def starts_of(documents: list[list[int]]) -> Tensor:
    """Where the document of each token begins, [B, S]."""
    begins = [torch.tensor(row).cumsum(0) - torch.tensor(row) for row in documents]
    rows = [begin.repeat_interleave(torch.tensor(row)) for begin, row in zip(begins, documents, strict=True)]
    return torch.stack(rows).int()


def of_documents(
    module: ModuleType, half: bool, lengths: list[int], q: Tensor, kv: Tensor, k_rope: Tensor, rope: Tensor
) -> Tensor:
    """The formula for each document by itself, of a single row."""
    parts = zip(*(t.split(lengths, 1) for t in (q, kv, k_rope, rope)), strict=True)
    return torch.cat([formula(module, half, *part) for part in parts], 1)


@pytest.mark.parametrize(("arch", "dtype"), [("sm_90", torch.bfloat16), ("sm_80", torch.float32)])
@pytest.mark.parametrize("documents", DOCUMENTS)
def test_documents_are_as_if_alone(documents: str, arch: str, dtype: torch.dtype) -> None:
    """float32 where documents of one token, whose q and k do not move, leave nothing but rounding."""
    wide = torch.float32 if documents == "of one token" else dtype
    check(attention("one head", arch, "apart"), "one head", 1, 300, wide, [DOCUMENTS[documents]])


def test_rows_have_documents_of_their_own() -> None:
    rows = [[7, 63], [70], [1, 1, 68]]
    for dtype in (torch.bfloat16, torch.float64):  # float64 runs the references
        check(attention("v of 48, rope of 8", documents="apart"), "v of 48, rope of 8", 3, 70, dtype, rows)
    check(attention("halves", "sm_80", "apart"), "halves", 3, 70, torch.float32, rows)


@pytest.mark.parametrize(("arch", "dtype"), [("sm_90", torch.bfloat16), ("sm_80", torch.float32)])
def test_rows_of_several_tiles_have_documents_of_their_own(arch: str, dtype: torch.dtype) -> None:
    """No program leaves its tensors or meets another."""
    with watched():
        check(attention("one head", arch, "apart"), "one head", 3, 300, dtype, UNLIKE)


def test_a_row_of_one_document_needs_no_starts() -> None:
    check(attention("three heads", documents="apart"), "three heads", 2, 70, torch.bfloat16)


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_formula_at_any_length(length: int) -> None:
    """Two tokens have one number that moves q and k; in bfloat16 its rounding is the whole error, so float32 there."""
    dtype = torch.float32 if length in (1, 2, 17, 129) else torch.bfloat16
    check(attention("one head"), "one head", 1, length, dtype)


@pytest.mark.parametrize("length", [17, 129, 300])
def test_loaded_by_pointers(length: int) -> None:
    check(attention("one head", "sm_80"), "one head", 1, length, torch.bfloat16)


@pytest.mark.parametrize(("arch", "dtype"), [("sm_90", torch.bfloat16), ("sm_80", torch.float32)])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_at_any_head_dims(shape: str, arch: str, dtype: torch.dtype) -> None:
    check(attention(shape, arch), shape, 2, 70, dtype)


@pytest.mark.parametrize("shape", ["three heads", "halves", "v of 48, rope of 8"])
def test_the_references_equal_the_formula(shape: str) -> None:
    """float64 runs them wherever it is."""
    check(attention(shape), shape, 2, 33, torch.float64)


def test_an_expanded_gradient_and_a_slice_of_the_table() -> None:
    """The gradient of a sum has no memory of its own; prediction ahead takes all rows of the table but one."""
    module = attention("three heads")
    q, kv, k_rope = randn(1, 20, 3, 48).requires_grad_(), randn(1, 20, 3, 64), randn(1, 20, 16)
    rope = rope_table(module, "three heads", 21)
    grads = []
    for table in (rope[:, :-1], rope[:, :-1].contiguous()):
        grads.append(torch.autograd.grad(module.mla_attention(q, kv, k_rope, table).sum(), q)[0])
    assert torch.equal(*grads) and grads[0].isfinite().all()


def test_fake_tensors_are_like_real_ones() -> None:
    module, backward = kernels(NAMES, **_keys("three heads"))[:2]
    q, kv, k_rope = randn(1, 20, 3, 48), randn(1, 20, 3, 64), randn(1, 20, 1, 16)
    given = (q, kv, k_rope, rope_table(module, "three heads", 20))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(module._forward, given, test_utils=tests)
    out, lse = module._forward(*given)
    torch.library.opcheck(backward.backward, (randn(*out.shape), *given, out, lse), test_utils=tests)


MASKED = 'tl.where(offs_m[:, None] >= (start_n + tl.arange(0, BLOCK_N))[None, :], scores, float("-inf"))'
FAULTS = {
    "forward sees ahead": ("mla_attention", MASKED, "scores"),
    "forward forgets k_rope": (
        "mla_attention",
        "tl.dot(q_rope, k_rope.T, scores",
        "tl.dot(q_rope * 0, k_rope.T, scores",
    ),
    "queries are not rotated": ("mla_attention", "q_rope = rotate(q_rope, cos, sin)", "q_rope = q_rope"),
    "the sum of exponentials is not rescaled": ("mla_attention", "l_i * alpha + ", "l_i + "),
    "the accumulator is not rescaled": ("mla_attention", "v, acc * alpha[:, None]", "v, acc"),
    "lse without the maximum": ("mla_attention", "m_i + tl.log2(l_i)", "tl.log2(l_i)"),
    "blocks of keys are skipped": (
        "mla_attention",
        "tl.range(begin, start_m, BLOCK_N)",
        "tl.range(begin, start_m, 2 * BLOCK_N)",
    ),
    "keys are seen by earlier queries": (
        "mla_attention_backward",
        'tl.where((start_m - start_n + row_m)[None, :] >= row_n[:, None], scores, float("-inf"))',
        "scores",
    ),
    "lse in another unit": ("mla_attention_backward", "lse[None, :] * (-1 / SCALE_LOG2)", "lse[None, :] * -1"),
    "keys without delta": (
        "mla_attention_backward",
        "tl.broadcast_to(-delta[None, :]",
        "tl.broadcast_to(0 * delta[None, :]",
    ),
    "queries past the end": (
        "mla_attention_backward",
        'start_m + row_m, mask=row_m < end - start_m, other=float("inf")',
        "start_m + row_m, mask=row_m < end - start_m, other=0.0",
    ),
    "dk without the scale": ("mla_attention_backward", "dk_nope * SCALE", "dk_nope"),
    "a head is missing from dk_rope": ("mla_attention_backward", "partial.sum(1)", "partial[:, 1:].sum(1)"),
    "queries see ahead": ("mla_attention_backward", MASKED, "scores"),
    "queries without delta": ("mla_attention_backward", "(dp - delta[:, None])", "dp"),
    "dq is not rotated back": ("mla_attention_backward", "cos, -sin)\n    store", "cos, sin)\n    store"),
    "positions go on through the batch": (
        "mla_common",
        "position = token - tl.program_id(2) * length",
        "position = token",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    name, old, new = FAULTS[fault]
    keys = {key.replace("__", "."): value for key, value in _keys("three heads").items()}
    files = printed(NAMES, spec_with("tiny", keys))
    assert files[f"{name}.py"].count(old) == 1, fault
    files[f"{name}.py"] = files[f"{name}.py"].replace(old, new)
    (module,) = package(files, NAMES[:1])
    with pytest.raises(AssertionError):
        check(module, "three heads", 2, 20, torch.bfloat16)
        check(module, "three heads", 1, 300, torch.bfloat16)


OF_DOCUMENTS = {
    "the key before a document is seen": ("mla_attention", "first[:, None] <= keys)", "first[:, None] <= keys + 1)"),
    "a block that is hidden from a query": ("mla_attention", "-1e30", 'float("-inf")'),
    "so it is in dq": ("mla_attention_backward", "first[:, None] <= keys)", "first[:, None] <= keys + 1)"),
    "the key before a document gets a gradient": (
        "mla_attention_backward",
        "first[None, :] <= row_n[:, None]",
        "first[None, :] <= row_n[:, None] + 1",
    ),
    "the last queries of a document are cut off": ("mla_attention_backward", "right=True", "right=False"),
    "the block in which a document begins": ("attention_rows", "begin + from_n,", "begin + from_n + BLOCK_N,"),
    "blocks that some see take no mask": ("attention_rows", "begin + from_all, start_m", "begin + from_n, start_m"),
    "rows after the first begin at its tokens": ("attention_rows", "return begin + own", "return own"),
    "blocks by the documents of the first row": (
        "attention_rows",
        "tl.load(starts_ptr + start_m), 0)",
        "tl.load(starts_ptr + start_m - begin), 0)",
    ),
}


@pytest.mark.parametrize("fault", OF_DOCUMENTS)
def test_a_fault_at_a_boundary_is_caught(fault: str) -> None:
    name, old, new = OF_DOCUMENTS[fault]
    keys = {key.replace("__", "."): value for key, value in _keys("one head").items()}
    files = printed(NAMES, spec_with("tiny", {**keys, "training.documents": "apart"}))
    assert files[f"{name}.py"].count(old) == 1, fault
    files[f"{name}.py"] = files[f"{name}.py"].replace(old, new)
    (module,) = package(files, NAMES[:1])
    with pytest.raises(AssertionError):
        check(module, "one head", 3, 300, torch.bfloat16, UNLIKE)
