"""Every function that `dsc bench` measures, in the interpreter: strided inputs; attention of no tokens."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import pytest
import torch
from kernels.lab import dims, kernels
from torch import Tensor

from dsc.compiler.bench.case import Case
from dsc.compiler.kernels.registry import KERNELS

CASES = "dsc.compiler.bench.cases"
NAMES = [name for name in KERNELS if find_spec(f"{CASES}.{name}")]
KEYS = {"precision__linear__kind": "fp8_block"}
MODELS = {"gqa_decode": "llama-3.1-8b"}
"""Where it is not tiny that has the kernel."""
IN_PLACE = {"latent_cache": 2}
"""Leading arguments of a case that stay: its function, and the cache that it writes to."""


def functions(name: str, tokens: int) -> Iterator[Case]:
    """A case for each function that is measured."""
    model = MODELS.get(name, "tiny")
    (module,) = kernels((name,), model, **KEYS)
    sizes = KERNELS[name].sizes(dims(model, **KEYS))
    seen = set()
    for case in islice(import_module(f"{CASES}.{name}").cases(module, sizes, tokens, "cpu"), 12):
        function = case.name.split(" ")[0] + str(len(case.run.args))  # type: ignore[attr-defined]
        if function not in seen:
            seen.add(function)
            yield case


def strided(x: Any) -> Any:
    """Equal numbers, every other of a tensor twice as wide."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    wide = torch.zeros(*x.shape, 2, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def outputs(result: Any) -> list[Tensor]:
    return [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_strided_inputs_give_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    for case in functions(name, 20):
        kept = IN_PLACE.get(name, 0)
        arguments = case.run.args  # type: ignore[attr-defined]
        given = [*arguments[:kept], *map(strided, arguments[kept:])]
        expected = [t.clone() for t in outputs(case.run())]
        actual = outputs(case.run.func(*given))  # type: ignore[attr-defined]
        assert any(isinstance(t, Tensor) and not t.is_contiguous() for t in given)
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one.float().nan_to_num(), other.float().nan_to_num()), case.name


def test_attention_of_no_tokens() -> None:
    (forward,) = kernels(("mla_attention",))
    heads, width = forward.NUM_HEADS, forward.QK_NOPE_HEAD_DIM
    rotary, v = forward.QK_ROPE_HEAD_DIM, forward.V_HEAD_DIM
    q, kv = torch.empty(1, 0, heads, width + rotary), torch.empty(1, 0, heads, width + v)
    given = (q.requires_grad_(), kv.requires_grad_(), torch.empty(1, 0, rotary), torch.empty(2, 0, rotary))
    for inputs in (given, tuple(t.double() for t in given)):  # the kernels, and the reference
        out = forward.mla_attention(*inputs)
        assert out.shape == (1, 0, heads, v)
        assert [g.shape for g in torch.autograd.grad(out.sum(), inputs[:2])] == [q.shape, kv.shape]


def test_the_cache_that_is_written_has_to_be_contiguous() -> None:
    (module,) = kernels(("latent_cache",), **KEYS)
    (case, *_) = functions("latent_cache", 8)
    write, cache, *rest = case.run.args  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="contiguous"):
        module._write(*rest, strided(cache))
    assert write is module._write
