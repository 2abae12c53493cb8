"""Reasoning apart from the answer, and the engine's end: what a server's stream is put together from."""

from itertools import pairwise
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics.harness import Compile
from numerics.specs import spec_text

MARKS = {"begin": "<think>", "end": "</think>"}
PARTS = ["<think>", "</think>", "<", "</thi", "nk>", " ", "\n", "so", "<thi", ">"]


@pytest.fixture(scope="module")
def reasoning(compiled: Compile) -> ModuleType:
    return compiled(spec_text(tokens={"reasoning": MARKS})).importer("infer.reasoning")


@pytest.mark.parametrize(
    ("inside", "text", "expected"),
    [
        (False, "<think>a</think>b", ("a", "b")),
        (False, "\n <think>a</think>b</think>c", ("a", "b</think>c")),
        (False, "a<think>b</think>", ("", "a<think>b</think>")),
        (False, "<think", ("", "<think")),
        (False, "<think>", ("", "")),
        (False, "<think>never ends </thi", ("never ends </thi", "")),
        (True, "a</think>b", ("a", "b")),
        (True, "<think>a</think>b", ("<think>a", "b")),
        (True, "a", ("a", "")),
        (False, "", ("", "")),
    ],
)
def test_what_stands_between_the_marks(
    reasoning: ModuleType, inside: bool, text: str, expected: tuple[str, str]
) -> None:
    assert reasoning.Reasoning(inside).split(text, last=True) == expected


@given(inside=st.booleans(), parts=st.lists(st.sampled_from(PARTS), max_size=8), cuts=st.sets(st.integers(0, 40)))
def test_pieces_are_the_whole_however_it_is_cut(
    reasoning: ModuleType, inside: bool, parts: list[str], cuts: set[int]
) -> None:
    text = "".join(parts)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    split = reasoning.Reasoning(inside)
    pieces = [split.split(text[a:b]) for a, b in pairwise(edges)] + [split.split("", last=True)]
    joined = tuple("".join(piece[part] for piece in pieces) for part in (0, 1))
    assert joined == reasoning.Reasoning(inside).split(text, last=True)
