"""One changed line of a spec changes the lines that mean it, and no other, in the files that use it."""

from collections.abc import Mapping
from difflib import ndiff

import pytest

from dsc.compiler.driver import build, emit
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

COUNTS = {"README.md", "dsc.lock.json"}  # figures and hashes stand here so that they churn nowhere else

# What is changed, from what to what, and the line of dims.py that is written anew, without its comment.
CHANGES: dict[str, tuple[tuple[str | int, ...], object, str | None]] = {
    "a rank": (("attention", "kv_lora_rank"), 80, "KV_LORA_RANK = 80"),
    "one more layer": (("layers", 1, "repeat"), 5, "NUM_MOE_LAYERS = 5"),
    "the vocabulary": (("vocab_size",), 513, "VOCAB_SIZE = 513"),
    "the experts": (("ffn", "moe", "n_routed_experts"), 32, "NUM_EXPERTS = 32"),
    "the base of the rotation": (("attention", "rope", "theta"), 12345.0, "ROPE_THETA = 12345.0"),
    "where YaRN's ramp begins": (("attention", "rope", "scaling", "beta_fast"), 16.0, "YARN_BETA_FAST = 16.0"),
    "the update of the bias": (
        ("ffn", "moe", "router", "balance", "bias_update_rate"),
        0.002,
        "BIAS_UPDATE_RATE = 0.002",
    ),
    "the length of a sequence": (("workload", "sequence_length"), 128, "SEQUENCE_LENGTH = 128"),
    "what the cache is kept in": (("precision", "kv_cache"), "bf16", None),
}


def changed(spec: ModelSpec, path: tuple[str | int, ...], value: object) -> ModelSpec:
    data = spec.model_dump()
    section = data
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return ModelSpec.model_validate(data)


def rewritten(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """The lines of each changed file as they are now, without comments; as many must have been there before."""
    result: dict[str, list[str]] = {}
    for name in before.keys() - COUNTS:
        lines = [line for line in ndiff(before[name].splitlines(), after[name].splitlines()) if line[0] in "+-"]
        new = [line[1:].split("#")[0].strip() for line in lines if line[0] == "+"]
        assert len(lines) == 2 * len(new), lines
        if new:
            result[name] = new
    return result


@pytest.fixture(scope="module")
def tiny() -> tuple[ModelSpec, dict[str, str]]:
    spec = load("tiny")
    return spec, emit(build(spec))


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_these_lines_change(tiny: tuple[ModelSpec, dict[str, str]], change: str) -> None:
    spec, before = tiny
    path, value, line = CHANGES[change]
    after = emit(build(changed(spec, path, value)))
    assert after.keys() == before.keys()
    assert rewritten(before, after) == ({"dims.py": [line]} if line else {})


def test_a_feature_that_is_taken_away_leaves_no_trace(tiny: tuple[ModelSpec, dict[str, str]]) -> None:
    spec, before = tiny
    after = emit(build(changed(spec, ("mtp",), None)))
    assert after.keys() == before.keys()
    for text in (text for name, text in after.items() if name != "dsc.lock.json"):
        assert "mtp" not in text.lower() and "multi-token" not in text.lower()
    kept = [line for line in ndiff(before["model.py"].splitlines(), after["model.py"].splitlines()) if line[0] == "+"]
    assert len(kept) <= 6, kept  # what handed things on to the predictor is written anew; all else only goes
