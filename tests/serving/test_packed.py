"""Engine(pack=True): the tokens and logits of plain weights, each weight held once, and refused where it cannot be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoding import chunk_logits
from numerics.checks import RAGGED
from numerics.harness import random_model
from serving.packages import Change, package
from torch import Tensor

TURNED = "infer/prepare.py", ("packed(whole)", "packed(whole.flip(0))")
SWAPPED = "infer/prepare.py", ("for expert in weight.detach()", "for expert in weight.detach().flip(0)")
KEPT = "infer/prepare.py", ("linear.weight.data = whole.new_empty(0)", "pass")
KEPT_EXPERTS = "infer/prepare.py", ("weight.data = weight.new_empty(0)", "pass")


def same_answers(change: Change | None = None) -> None:
    emitted = package(change=change)
    plain, packed = (emitted.engine.Engine(random_model(emitted, torch.float32), pack=pack) for pack in (False, True))
    assert packed.generate(RAGGED, max_new_tokens=12) == plain.generate(RAGGED, max_new_tokens=12)


def each_weight_once(change: Change | None = None) -> None:
    emitted = package(change=change)
    model = random_model(emitted, torch.float32)
    size = sum(weight.nbytes for weight in model.parameters())
    engine = emitted.engine.Engine(model, pack=True)
    packed = {id(tensor): tensor for tensor in tensors(engine.module) if tensor.is_mkldnn}
    left = sum(weight.nbytes for weight in model.parameters())
    assert left + sum(tensor.numel() * tensor.element_size() for tensor in packed.values()) == size
    assert left < size / 2


def tensors(prepared: Any) -> Iterator[Tensor]:
    """All that prepared weights hold, through lists and parts."""
    if isinstance(prepared, Tensor):
        yield prepared
    elif isinstance(prepared, list):
        for part in prepared:
            yield from tensors(part)
    elif type(prepared).__module__.endswith("infer.prepare"):
        yield from tensors(list(vars(prepared).values()))


def test_answers_are_those_of_plain_weights() -> None:
    same_answers()


def test_logits_are_those_of_plain_weights() -> None:
    """Of prompts in chunks of one token to many, and of the tokens behind them."""
    emitted = package()
    tokens = torch.randint(0, 60, (3, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for pack in (False, True):
        model = random_model(emitted, torch.float32)
        found.append(chunk_logits(emitted.importer, model, tokens, [1, 2, 20, 9, 1, 7], pack=pack))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_each_weight_is_held_once() -> None:
    each_weight_once()


@pytest.mark.parametrize("change", [TURNED, SWAPPED])
def test_a_weight_in_another_order_is_seen(change: Change) -> None:
    with pytest.raises(AssertionError):
        same_answers(change)


@pytest.mark.parametrize("change", [KEPT, KEPT_EXPERTS])
def test_a_weight_that_is_held_twice_is_seen(change: Change) -> None:
    with pytest.raises(AssertionError):
        each_weight_once(change)


@pytest.mark.parametrize("pack", [False, True])
def test_a_model_whose_weights_are_gone_is_refused(pack: bool) -> None:
    emitted = package()
    model = random_model(emitted, torch.float32)
    emitted.engine.Engine(model, pack=True)
    with pytest.raises(ValueError, match="an engine has packed this model's weights and keeps them"):
        emitted.engine.Engine(model, pack=pack)


def test_what_cannot_be_packed_is_refused() -> None:
    emitted = package()
    with pytest.raises(ValueError, match="only float32 on a CPU can be packed"):
        emitted.engine.Engine(random_model(emitted), pack=True)
    with pytest.raises(ValueError, match="leave out pack, or compile"):
        emitted.engine.Engine(random_model(emitted, torch.float32), pack=True, compile=True)
