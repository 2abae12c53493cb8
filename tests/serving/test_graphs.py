"""Engine(cuda_graphs=True): the same texts as without, from graphs as a test replays them (cuda_graphs.py)."""

import random
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from numerics.harness import Package, random_model
from serving.cuda_graphs import Graph, address, faked
from serving.packages import Change, package_of
from torch import Tensor, nn

from dsc.compiler.driver import build
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk
from dsc.spec.zoo import MODELS, names

GRAPHS = "infer/graphs.py"
CAPTURES = "infer/engine.py", ('cuda_graphs and self.device.type == "cuda"', "cuda_graphs")
FAST, UNCAPTURED = ("deepseek-v3", "llama-3.1-8b"), ("mistral-7b", "tiny-r1", "tiny-window")

SOURCE = random.Random(0)
PROMPTS = [[SOURCE.randrange(83) for _ in range(length)] for length in (54, 3, 1, 33, 12, 64)]
NEW = (20, 30, 40, 24, 5, 12)
ARRIVALS = (0, 0, 1, 4, 6, 9)
"""Before which steps."""
PAGES = 4  # fewer than four texts may want


def small(name: str) -> ModelSpec:
    """A model of the zoo for a GPU, at sizes that the kernels have tiles for, with products in the model's own type.

    Those in FP8 round: the last bits of two ways to add up the same numbers would choose other tokens.
    """
    data = shrunk(load(name)).model_dump()
    if data["attention"].get("kind") == "mla":
        data["attention"] |= {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
    data["layers"] = [{**group, "repeat": 1} for group in data["layers"]]
    data["precision"]["linear"] = {"kind": "bf16"}
    data |= {"cluster": {"kind": "h100", "nodes": 1}, "placement": None}
    return ModelSpec.model_validate(data)


@cache
def package(name: str, change: Change | None = None) -> Package:
    return package_of(small(name), CAPTURES, *([] if change is None else [change]))


def engine(package: Package, model: nn.Module, **options: Any) -> Any:
    weight = model.embed_tokens.weight.detach()
    page = sum(pages.nbytes for pages in package.importer("infer.decode").empty_caches(1, weight))
    made = package.engine.Engine(model, cache_bytes=PAGES * page, max_running=4, step_tokens=48, **options)
    for pages in made.caches:
        pages.fill_(torch.nan)  # memory as it was found
    return made


def written(package: Package, engine: Any, known: list[list[int]] | None = None) -> tuple[list[Any], list[list[int]]]:
    """Texts that come one after the other, greedy and drawn, and the guesses of all steps.

    If they are `known`, a third of the guesses is right, and a third is left out: steps have texts with and without.
    """
    sampling = package.importer("infer.sampling").Sampling
    guesses = hasattr(engine, "speculation")
    if guesses:
        engine.speculation._pays = lambda: True  # whatever the clock says
    texts: list[Any] = []
    guessed: list[list[int]] = []
    for step in range(400):
        for index in range(len(PROMPTS)):
            if ARRIVALS[index] == step:
                way = {"temperature": 0.8, "top_k": 9, "presence_penalty": 0.5} if index % 2 else {}
                texts.append(engine.submit(PROMPTS[index], sampling(NEW[index], seed=index, **way)))
        engine.step()
        for index, (text, tokens) in enumerate(zip(texts, known or [], strict=False)):
            if guesses and text.guess:
                guessed.append(text.guess)
                place = len(text.tokens)
                text.guess = (text.guess, tokens[place:][:1], [])[(place + index) % 3]
    assert engine.scheduler.idle and not any(engine.pool.holders)
    return texts, guessed


@cache
def without_graphs(name: str) -> tuple[list[list[int]], list[list[int]]]:
    """What is written, and what is guessed when that is known."""
    emitted = package(name)
    model = random_model(emitted)
    texts, _ = written(emitted, engine(emitted, model, cuda_graphs=False))
    known = [text.tokens for text in texts]
    _, guessed = written(emitted, engine(emitted, model, cuda_graphs=False), known)
    return known, guessed


def same_texts(package: Package) -> list[Graph]:
    """The graphs that were replayed for it. A guess that differs changes no text, so guesses are compared too."""
    model = random_model(package)
    expected, guesses = without_graphs(package.spec.name.removesuffix("-shrunk"))
    for options in ({"speculate": False}, {}) if guesses else ({},):
        with faked() as graphs:
            texts, guessed = written(package, engine(package, model, **options), expected)
        assert [text.tokens for text in texts] == expected
        assert guessed == ([] if options else guesses)
    assert any(text.preempted for text in texts)
    return [graph for graph in graphs if graph.replays]


@pytest.mark.parametrize("name", FAST)
def test_texts_are_those_without_graphs(name: str) -> None:
    replayed = same_texts(package(name))
    assert len(replayed) >= (6 if name == "deepseek-v3" else 3)  # for 1, 2 and 4 texts, and their guesses


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*names(MODELS)} - {*FAST, *UNCAPTURED, "deepseek-r1", "llama-3.1-405b"}))
def test_texts_of_every_model_are_those_without_graphs(name: str) -> None:
    assert same_texts(package(name))


@pytest.mark.parametrize("name", UNCAPTURED)
def test_a_model_whose_steps_cannot_be_captured_says_so(name: str) -> None:
    (note,) = [note for note in build(small(name)).notes if "CUDA graphs" in note]
    assert note.endswith("recorded" if name == "tiny-r1" else "attention over pages is PyTorch's")


def test_what_a_graph_reads_stays_where_it_is() -> None:
    emitted = package("deepseek-v3")
    with faked() as graphs:
        made = engine(emitted, random_model(emitted))
    held = {address(tensor) for tensor in chain(tensors_of(made.module), made.caches, tensors_of(made.graphs))}
    for graph in graphs:
        assert graph.tape.given.keys() <= held


def tensors_of(value: Any) -> list[Tensor]:
    """All that hang on an object of the package, graphs and their results left out."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [tensor for item in getattr(value, "__dict__", {}).values() for tensor in tensors_of(item)]


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}])
def test_nothing_is_captured_on_a_cpu(options: dict[str, bool]) -> None:
    emitted = package_of(small("llama-3.1-8b"))
    assert emitted.engine.Engine(random_model(emitted), **options).graphs is None


FAULTS = {
    "tokens of the capture": ("= self.flat[:, : texts * new]", "= self.flat[:, : texts * new].clone()"),
    "rows that nobody reads, in a page that is somebody's": ("(0, 0, NOWHERE)", "(0, 0, PAGE_SIZE)"),
    "lengths of the step before": ("ends + missing", "[end - 1 for end in ends] + missing"),
}
MORE_FAULTS = {
    "lengths of the capture": ("self.lengths[:texts] =", "self.lengths[:0] ="),
    "a table of the step before": ("self.table[: len(parts), :width] =", "self.table[: len(parts), : width - 1] ="),
    "lengths that leave out the rows that fill up": ("part.first + new for", "part.end for"),
    "results where they would be if nothing were filled up": ("text * new + index", "text + index"),
    "guesses from states of the step before": ("self.hidden[self._at(places)] = hidden", "hidden"),
    "states of others": ("hidden[self._at(places)]\n", "hidden[self._at(reversed(places))]\n"),
}


CASES = [
    *(pytest.param(fault, id=name) for name, fault in FAULTS.items()),
    *(pytest.param(fault, id=name, marks=pytest.mark.slow) for name, fault in MORE_FAULTS.items()),
]


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_seen(fault: tuple[str, str]) -> None:
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        same_texts(package("deepseek-v3", (GRAPHS, fault)))
