"""Engine(compile=True): the same tokens as without, one compilation for a size, and nothing of what pads a batch."""

import math
import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from numerics.families import VOCABULARY
from numerics.harness import Package, random_model
from serving.packages import Change, package

SOURCE = random.Random(0)
PROMPTS = [[SOURCE.randrange(VOCABULARY) for _ in range(length)] for length in (17, 30, 21, 19)]
NEW = 24  # across the ends of pages

SEEN = "infer/compiled.py", ("replace(group, seen=MAX_POSITION_EMBEDDINGS)", "group")
FIXED = "infer/compiled.py", ("torch._dynamo.mark_dynamic(tensor, tensor.dim() - 1)", "pass")
CROSSED = "infer/decode.py", ("weight[chosen]", "weight[chosen.flip(0)]")
UNPADDED = "infer/compiled.py", ("[nobody] * (bucket - len(parts))", "[]")


class Counted:
    """A backend of torch.compile that runs what it is given as it stands, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def compiling(change: Change | None, backend: Any) -> tuple[Package, Any, Any]:
    """A package, a model of it and an engine that compiles with the backend."""
    torch._dynamo.reset()
    emitted = package(change=change)
    model = random_model(emitted)
    engine = emitted.engine.Engine(model, compile=True)
    forward = import_module(f"{emitted.name}.infer.decode").model_forward
    engine.compiled.forward = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)
    return emitted, model, engine


def same_tokens(change: Change | None = None, backend: Any = None, numbers: tuple[int, ...] = (1, 3, 4)) -> None:
    backend = backend or Counted()
    emitted, model, engine = compiling(change, backend)
    for cache in engine.caches:
        cache[0] = math.nan  # the page of what pads
    for texts in numbers:
        expected = emitted.engine.Engine(model).generate(PROMPTS[:texts], max_new_tokens=NEW)
        assert engine.generate(PROMPTS[:texts], max_new_tokens=NEW) == expected
    if isinstance(backend, Counted):
        assert 0 < backend.count <= MOST


MOST = 6
"""Of one and of four texts, each with and without a guess; what ends first leaves two."""


def test_tokens_are_those_of_the_engine_that_compiles_nothing() -> None:
    same_tokens()


def nothing_compiled_later(change: Change | None = None) -> None:
    """Once each size has been there, with guesses and without: in longer texts, on more pages, in other company."""
    backend = Counted()
    _, _, engine = compiling(change, backend)
    engine.speculation._pays = lambda: True  # and not by the clock

    def write(texts: int, new: int) -> None:
        for guesses in (True, False):
            engine.speculation.allowed = guesses
            engine.generate(PROMPTS[:texts], max_new_tokens=new)

    for texts in (1, 2, 4):
        write(texts, 6)
    ready = backend.count
    assert ready > 0
    for texts in (1, 2, 3, 4):
        write(texts, 34)
    assert backend.count == ready


def test_a_size_is_compiled_once() -> None:
    nothing_compiled_later()


@pytest.mark.slow
@pytest.mark.parametrize("change", [SEEN, FIXED, UNPADDED])
def test_a_size_that_is_compiled_again_is_seen(change: Change) -> None:
    with pytest.raises((AssertionError, torch._dynamo.exc.FailOnRecompileLimitHit)):
        nothing_compiled_later(change)


def test_without_a_compiler_there_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    emitted = package()
    with pytest.raises(RuntimeError, match="install g\\+\\+, or set CXX"):
        emitted.engine.Engine(random_model(emitted), compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no-such-compiler is not there"):
        emitted.engine.Engine(random_model(emitted), compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("change", [SEEN, FIXED, CROSSED, UNPADDED])
def test_a_fault_is_seen(change: Change) -> None:
    with pytest.raises((AssertionError, torch._dynamo.exc.FailOnRecompileLimitHit)):
        same_tokens(change)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1,), (3, 4)])
def test_tokens_are_the_same_in_machine_code(numbers: tuple[int, ...]) -> None:
    """Half a minute of processor time for each program, and the C++ compiler's: two programs, then up to four."""
    same_tokens(backend="inductor", numbers=numbers)
