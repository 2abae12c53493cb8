"""The split into stages is the best there is, and keeps the order of the model."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.driver import build
from dsc.compiler.planner.parts.parts import EMBEDDING, HEAD, parts_of
from dsc.compiler.planner.parts.stages import _split, split, weights
from dsc.spec.loader import load


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(1, 5), st.integers(1, 2))
def test_no_split_is_better(costs: list[int], stages: int, least_first: int) -> None:
    if stages + least_first - 1 > len(costs):
        return

    def quality(bounds: tuple[int, ...]) -> tuple[int, int]:
        sums = [sum(costs[a:b]) for a, b in pairwise(bounds)]
        return max(sums), sum(one**2 for one in sums)

    every = [(0, *inner, len(costs)) for inner in combinations(range(least_first, len(costs)), stages - 1)]
    best = min(quality(bounds) for bounds in every)
    assert quality(_split(tuple(costs), stages, least_first)) == best


@pytest.mark.parametrize(("name", "stages"), [("deepseek-v3", 16), ("deepseek-v3", 61), ("llama-3.1-405b", 16)])
def test_every_part_stands_once_and_in_order(name: str, stages: int) -> None:
    spec = load(name)
    parts = parts_of(build(spec).training)
    found = split(parts, weights(parts, spec.workload.sequence_length), stages)
    assert len(found) == stages
    assert [index for stage in found for index in stage] == list(range(len(parts)))
    assert len(found[0]) > 1


def test_deepseek_v3_on_sixteen_stages() -> None:
    """61 layers, multi-token prediction and a head that works twice: four layers each, the last stage has one."""
    plain = load("deepseek-v3").model_copy(update={"cluster": None})  # kernels make the head's logits once more
    parts = parts_of(build(plain).training)
    found = split(parts, weights(parts, 4096), 16)
    names = [[parts[index].name for index in stage] for stage in found]
    assert names[0] == [EMBEDDING, "layers.0", "layers.1", "layers.2", "layers.3"]
    assert [len(stage) for stage in names[1:15]] == [4] * 14
    assert names[15] == ["layers.60", "mtp.0", HEAD]


def test_parts_hold_every_parameter_once() -> None:
    for name in ("deepseek-v3", "minicpm3-4b", "mixtral-8x7b"):
        graph = build(load(name)).training
        parts = parts_of(graph)
        held = [parameter for part in parts for parameter in part.parameters]
        assert sorted(held) == sorted(graph.parameters())
        borrowed = {part.name: list(part.borrowed) for part in parts if part.borrowed}
        tied = {"deepseek-v3": {"mtp.0": ["embed_tokens.weight"]}, "minicpm3-4b": {HEAD: ["embed_tokens.weight"]}}
        assert borrowed == tied.get(name, {})
