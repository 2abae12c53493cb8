"""Every function that `dsc bench` measures, watched: strided inputs, shuffled programs; attention of no tokens."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels.lab import dims, kernels, mutated
from kernels.watched import OutOfRange, Race, watched
from torch import Tensor

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.run import checked
from dsc.compiler.bench.sizes import SIZES
from dsc.compiler.kernels.registry import KERNELS

CASES = "dsc.compiler.bench.cases"
NAMES = [name for name in KERNELS if find_spec(f"{CASES}.{name}")]
KEYS = {"precision__linear__kind": "fp8_block"}
MODELS = dict.fromkeys(("gqa_attention", "gqa_attention_backward", "gqa_decode"), "llama-3.1-8b")
"""Where it is not tiny that has the kernel."""
SPLIT = ("mla_decode", "gqa_decode")
"""What divides the tokens of a sequence among programs, here also where there are few."""
WHOLE = {"fp8_gemm": 4}
"""First cases that are left out: their rows are whole tiles."""
IN_PLACE = {"latent_cache": 2}
"""Leading arguments of a case that stay: its function, and the cache that it writes to."""


def functions(name: str, module: ModuleType, tokens: int, **changes: int) -> Iterator[Case]:
    """A case for each function that is measured; `changes` are those of the module's spec."""
    sizes = SIZES[name](dims(MODELS.get(name, "tiny"), **KEYS, **changes))
    seen = set()
    cases = import_module(f"{CASES}.{name}").cases(module, sizes, tokens, "cpu")
    for case in islice(cases, WHOLE.get(name, 0), 12):
        function = (case.run.func, len(case.run.args))  # type: ignore[attr-defined]
        if function not in seen:
            seen.add(function)
            yield case


def strided(x: Any) -> Any:
    """Equal numbers, every other of a tensor twice as wide; between them NaN, or -1."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    wide = torch.empty(*x.shape, 2, dtype=x.dtype)
    wide.view(torch.uint8).fill_(255)
    wide[..., 0] = x
    return wide[..., 0]


def outputs(result: Any) -> list[Tensor]:
    return [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]


def check(name: str, module: ModuleType, **changes: int) -> None:
    """Strided inputs, programs in any order: the same bits. No program leaves its tensors or meets another."""
    torch.manual_seed(0)
    launched = set()
    for case in functions(name, module, 150 if name in SPLIT else 20, **changes):
        kept = IN_PLACE.get(name, 0)
        arguments = case.run.args  # type: ignore[attr-defined]
        given = [*arguments[:kept], *map(strided, arguments[kept:])]
        expected = [t.clone() for t in outputs(case.run())]
        with watched() as names:
            actual = outputs(case.run.func(*given))  # type: ignore[attr-defined]
        launched |= names
        assert any(isinstance(t, Tensor) and not t.is_contiguous() for t in given)
        for found, wanted in zip(actual, expected, strict=True):
            assert torch.equal(found.float().nan_to_num(), wanted.float().nan_to_num()), case.name
    assert {key for key in vars(module) if re.fullmatch(rf"{name}_\w+_kernel", key)} <= launched


@pytest.mark.parametrize("name", NAMES)
def test_strides_order_and_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = kernels((name,), MODELS.get(name, "tiny"), **KEYS)
    if name in SPLIT:
        monkeypatch.setattr(module, "num_splits", lambda batch, rows, tokens: 3)
        monkeypatch.setattr(module, "MIN_SPLIT", module.SPLIT["BLOCK_N"])
    check(name, module)


@pytest.mark.parametrize("tokens", [0, 20])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_equals_its_reference(name: str, tokens: int) -> None:
    """As `dsc bench` compares them on a GPU; without tokens too, where gradients of weights are zero."""
    (module,) = kernels((name,), MODELS.get(name, "tiny"), **KEYS, training__documents="apart")
    torch.manual_seed(0)
    for case in functions(name, module, tokens):
        assert checked(name, case).correct, case.name


FAULTS = {
    "rows past the end": (
        "linear_cross_entropy",
        "tl.minimum(start_m + tl.arange(0, BLOCK_M), num_tokens - 1)",
        "(start_m + tl.arange(0, BLOCK_M))",
        OutOfRange,
    ),
    "scales past the last row": (
        "fp8_gemm",
        "a_scale_ptr + block * num_rows, mask=offs_m < num_rows)",
        "a_scale_ptr + block * num_rows)",
        OutOfRange,
    ),
    "scales as they come": (
        "fp8_gemm",
        "a.contiguous(), by_blocks(a_scale), b.contiguous(), b_scale,",
        "a.contiguous(), a_scale, b.contiguous(), b_scale,",
        AssertionError,
    ),
    "heads share dk_rope": ("mla_attention_backward", "partial_ptr += plane * R", "partial_ptr += 0 * plane", Race),
    "tokens as they come": ("grouped_gemm", "tokens.contiguous(), weights", "tokens, weights", AssertionError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    name, old, new, error = FAULTS[fault]
    with pytest.raises(error):
        check(name, mutated(name, old, new, **KEYS))


def test_attention_of_no_tokens() -> None:
    (forward,) = kernels(("mla_attention",))
    heads, width = 2, forward.QK_NOPE_HEAD_DIM
    rotary, v = forward.QK_ROPE_HEAD_DIM, forward.V_HEAD_DIM
    q, kv = torch.empty(1, 0, heads, width + rotary), torch.empty(1, 0, heads, width + v)
    given = (q.requires_grad_(), kv.requires_grad_(), torch.empty(1, 0, rotary), torch.empty(2, 0, rotary))
    for inputs in (given, tuple(t.double() for t in given)):  # the kernels, and the reference
        out = forward.mla_attention(*inputs)
        assert out.shape == (1, 0, heads, v)
        assert [g.shape for g in torch.autograd.grad(out.sum(), inputs[:2])] == [q.shape, kv.shape]


def test_the_cache_that_is_written_has_to_be_contiguous() -> None:
    (module,) = kernels(("latent_cache",), **KEYS)
    (case, *_) = functions("latent_cache", module, 8)
    write, cache, *rest = case.run.args  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="contiguous"):
        module._write(*rest, strided(cache))
    assert write is module._write
