"""Weights in oneDNN's layout while many texts are written: when, the same tokens, held once, and given back."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoding import chunk_logits
from numerics.families import VOCABULARY
from numerics.harness import Package, random_model
from serving.packages import Change, module, package
from torch import Tensor

TURNED = "infer/prepare.py", ("_reorder_linear_weight(part, 32)", "_reorder_linear_weight(part.flip(0), 32)")
SWAPPED = "infer/prepare.py", ("for part in weight]", "for part in weight.flip(0)]")
MIXED = "infer/prepare.py", ("place.copy_(part.to_dense())", "place.copy_(part.to_dense().flip(0))")
KEPT = "infer/prepare.py", ("memory.resize_(0)", "pass")
LOST = "infer/prepare.py", ("or memory.nbytes() != weight.nbytes", "")
NEVER = "infer/layout.py", ("self._steps == STEADY or", "")
AT_ONCE = "infer/layout.py", ("self._steps == STEADY or", "self._steps or")
ALL_IN_ALL = "infer/layout.py", ("else 0\n", "else self._steps\n")
HELD_BACK = "infer/layout.py", (" or (packed and texts == 0)", "")
UNTOLD = "infer/engine.py", ("self._rest()\n        self.made", "self.made")

BOUNDS = 2, 4
PROMPTS = [[(7 * text + 3 * token) % VOCABULARY for token in range(3 + 5 * text)] for text in range(6)]
LENGTHS = [44, 40, 18, 18, 18, 18]  # so that six are written, then two
TOGETHER = [18] * 6
PLAIN, PACKED = False, True


def engine_of(emitted: Package, model: Any) -> Any:
    """One that changes layouts on any machine, and guesses nothing, so that a step writes a token of each text."""
    engine = emitted.engine.Engine(model, speculate=False)
    engine.layout.bounds = BOUNDS
    return engine


def is_packed(engine: Any) -> bool:
    return any(tensor.is_mkldnn for tensor in tensors(engine.layout.module))


def tensors(prepared: Any) -> Iterator[Tensor]:
    """All that prepared weights hold, through lists and parts."""
    if isinstance(prepared, Tensor):
        yield prepared
    elif isinstance(prepared, list):
        for part in prepared:
            yield from tensors(part)
    elif type(prepared).__module__.endswith("infer.prepare"):
        yield from tensors(list(vars(prepared).values()))


def written(emitted: Package, engine: Any, lengths: list[int] = LENGTHS) -> tuple[list[list[int]], list[bool]]:
    """The new tokens of each text, and the layout that each step had."""
    sampling = module_of(emitted, "sampling").Sampling
    texts = [engine.submit(prompt, sampling(new)) for prompt, new in zip(PROMPTS, lengths, strict=True)]
    layouts = []
    while any(text.ended is None for text in texts):
        forward = engine._forward

        def noting(*arguments: Any, forward: Any = forward) -> Any:
            layouts.append(is_packed(engine))
            return forward(*arguments)

        engine._forward = noting
        engine.step()
        engine._forward = forward
    return [text.new_tokens for text in texts], layouts


def module_of(emitted: Package, name: str) -> Any:
    return emitted.importer(f"infer.{name}")


def same_answers(change: Change | None = None) -> None:
    """Both ways in mid-text, and once each."""
    emitted = package(change=change)
    model = random_model(emitted, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = emitted.engine.Engine(model, speculate=False)
    expected, _ = written(emitted, plain)
    engine = engine_of(emitted, model)
    found, layouts = written(emitted, engine)
    assert found == expected
    changes = [index for index in range(1, len(layouts)) if layouts[index] != layouts[index - 1]]
    assert layouts[0] is PLAIN and len(changes) == 2 and not is_packed(engine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plain.generate(PROMPTS[:1], 8) == [expected[0][:8]]  # its views have their memory too


def test_answers_are_those_of_the_models_own_layout() -> None:
    same_answers()


@pytest.mark.parametrize("change", [TURNED, SWAPPED, MIXED, NEVER, AT_ONCE])
def test_a_wrong_layout_or_a_change_at_the_wrong_time_is_seen(change: Change) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        same_answers(change)


def test_logits_are_those_of_the_models_own_layout() -> None:
    """Of prompts in chunks of one token to many, and of the tokens behind them."""
    emitted = package()
    tokens = torch.randint(0, 60, (3, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for packed in (PLAIN, PACKED):
        model = random_model(emitted, torch.float32)
        found.append(chunk_logits(emitted.importer, model, tokens, [1, 2, 20, 9, 1, 7], packed=packed))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def each_weight_once(change: Change | None = None) -> None:
    emitted = package(change=change)
    model = random_model(emitted, torch.float32)
    size = held(model)
    engine = engine_of(emitted, model)
    engine.layout._change(PLAIN)
    packed = {id(tensor): tensor for tensor in tensors(engine.layout.module) if tensor.is_mkldnn}
    left = held(model)
    assert left + sum(tensor.numel() * tensor.element_size() for tensor in packed.values()) == size
    assert left < size / 2
    engine.layout._change(PACKED)
    assert held(model) == size


def held(model: Any) -> int:
    """Bytes of the memory of its parameters."""
    memories = [parameter.untyped_storage() for parameter in model.parameters()]
    return sum({memory._cdata: memory.nbytes() for memory in memories}.values())


def test_each_weight_is_held_once() -> None:
    each_weight_once()


def test_a_weight_that_is_held_twice_is_seen() -> None:
    with pytest.raises(AssertionError):
        each_weight_once(KEPT)


STATES = {
    "many for long": ([5] * 9, [PLAIN] * 7 + [PACKED] * 2),
    "not as many": ([4] * 20, [PLAIN] * 20),
    "in turns": ([5, 4] * 10, [PLAIN] * 20),
    "not long": ([5] * 7 + [4] + [5] * 7, [PLAIN] * 15),
    "between the bounds": ([5] * 8 + [3] * 20, [PLAIN] * 7 + [PACKED] * 21),
    "few for long": ([5] * 8 + [2] * 9, [PLAIN] * 7 + [PACKED] * 8 + [PLAIN] * 2),
    "few and many in turns": ([5] * 8 + [2, 5] * 10, [PLAIN] * 7 + [PACKED] * 21),
    "none": ([5] * 8 + [0], [PLAIN] * 7 + [PACKED, PLAIN]),
}


def right_states(change: Change | None = None) -> None:
    emitted = package(change=change)
    for texts, expected in STATES.values():
        layout = engine_of(emitted, random_model(emitted, torch.float32)).layout
        found = []
        for number in texts:
            layout.suit(number)
            found.append(layout.module is not layout._plain)
        assert found == expected


def test_a_layout_changes_when_another_has_suited_for_some_steps() -> None:
    right_states()


@pytest.mark.parametrize("change", [NEVER, AT_ONCE, ALL_IN_ALL, HELD_BACK])
def test_a_layout_that_never_changes_or_flaps_is_seen(change: Change) -> None:
    with pytest.raises(AssertionError):
        right_states(change)


def trained_in_place(change: Change | None = None) -> None:
    """A step of training between two calls, whose weights' memory other tensors see too."""
    emitted = package(change=change)
    model = random_model(emitted, torch.float32)
    head = model.lm_head.weight
    flat = torch.cat([head.detach().flatten(), torch.full((3,), 7.0)])
    head.data = flat[:-3].view_as(head)
    engine = engine_of(emitted, model)
    written(emitted, engine, TOGETHER)
    tokens = torch.tensor(PROMPTS[5][:9]).view(1, -1)
    model.loss(tokens[:, :-1], tokens[:, 1:])[0].backward()
    torch.optim.SGD(model.parameters(), lr=2.0).step()
    assert torch.equal(flat[:-3].view_as(head), head) and flat[-3:].tolist() == [7.0] * 3
    found, layouts = written(emitted, engine_of(emitted, model), TOGETHER)
    assert layouts[-1] is PACKED
    assert found == written(emitted, emitted.engine.Engine(model, speculate=False), TOGETHER)[0]


def test_what_is_trained_in_place_is_what_writes() -> None:
    trained_in_place()


@pytest.mark.parametrize("change", [LOST, UNTOLD])
def test_weights_that_the_model_does_not_get_back_are_seen(change: Change) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        trained_in_place(change)


def test_meanwhile_the_model_is_without_its_weights_and_says_so() -> None:
    emitted = package()
    model = random_model(emitted, torch.float32)
    engine = engine_of(emitted, model)
    texts = [engine.submit(prompt, module_of(emitted, "sampling").Sampling(20)) for prompt in PROMPTS]
    while not is_packed(engine):
        engine.step()
    with pytest.raises(RuntimeError, match="storage"):
        model(torch.tensor(PROMPTS[:1]))
    with pytest.raises(ValueError, match="another engine writes many texts with this model's weights"):
        emitted.engine.Engine(model)
    for text in texts:
        engine.cancel(text)
    model(torch.tensor(PROMPTS[:1]))
    emitted.engine.Engine(model)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_bounds(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    layout = module("layout")
    expected = (layout.FEW, layout.MANY) if capability == "AVX512" else None
    assert layout.bounds(torch.zeros(1)) == expected
    assert layout.bounds(torch.zeros(1, dtype=torch.float64)) is None
    assert layout.bounds(torch.zeros(1, device="meta")) is None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: capability == "AVX512")
    assert layout.bounds(torch.zeros(1, dtype=torch.bfloat16)) == ((0, 0) if expected else None)
    emitted = package()
    model = random_model(emitted, torch.float32)
    assert emitted.engine.Engine(model).layout.bounds == expected
    assert emitted.engine.Engine(model, compile=True).layout.bounds is None
