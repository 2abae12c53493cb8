"""Whatever a file holds: a spec, or an error whose findings all say where, what and what instead. Never a hang."""

import copy
import json
import time
from pathlib import Path
from typing import Any, get_args

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dsc.spec.checks import check
from dsc.spec.errors import Code, DscError
from dsc.spec.loader import loads
from dsc.spec.model import ModelSpec
from dsc.spec.report import render
from dsc.spec.text import decode
from dsc.spec.yaml import Document, read

VALID_TEXT = (Path(__file__).parent / "errors" / "valid.yaml").read_text()
VALID: Any = read(VALID_TEXT, "valid.yaml").root
SECONDS = 5.0

# What pydantic says in its own words; ours never read like that.
PYDANTIC = ("Input should be", "Field required", "not permitted", "validation error", "valid integer", "[type=")

GQA = {
    "kind": "gqa",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "qk_norm": {"eps": 1e-6},
    "rope": {
        "layout": "half",
        "scaling": {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
}

fuzzed = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))


def holds(text: str | bytes) -> ModelSpec | None:
    """The property of this file."""
    start = time.perf_counter()
    try:
        spec = loads(text, "spec.yaml")
    except DscError as error:
        assert error.findings
        for finding in error.findings:
            assert finding.code in get_args(Code)
            assert finding.message and finding.help
            assert not any(words in finding.message + finding.help for words in PYDANTIC)
            assert finding.position is not None and finding.position.file == "spec.yaml"
            assert finding.position.line >= 1 and finding.position.column >= 1
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        for line in render(error.findings, "human", {"spec.yaml": shown}).splitlines():
            assert line.isprintable()
        json.loads(render(error.findings, "json", {}))
        render(error.findings, "github", {})
        event("refused")
        return None
    finally:
        assert time.perf_counter() - start < SECONDS
    event("accepted")
    return spec


@fuzzed
@given(st.binary(max_size=400))
def test_bytes(data: bytes) -> None:
    holds(data)


@fuzzed
@given(st.text(max_size=300))
def test_text(text: str) -> None:
    holds(text)


PIECES = [
    "\n",
    "\n  ",
    "\n    ",
    " ",
    ": ",
    "- ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "!!int ",
    "!",
    "<<: ",
    "| \n",
]
PIECES += [
    "> ",
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "#",
    '"',
    "'",
    "\\x",
    "\\U00110000",
    "\t",
    "@",
    "`",
    "\u00e9",
    "\r",
    "~",
    "null",
]
PIECES += [
    "name",
    "valid",
    "attention",
    "kind",
    "mla",
    "1e400",
    "0x",
    "-.inf",
    ".nan",
    "1_000",
    "2026-01-01",
    "=",
    "9" * 70,
]


@fuzzed
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_text_that_looks_like_yaml(pieces: list[str]) -> None:
    holds("".join(pieces))


@fuzzed
@given(st.lists(st.tuples(st.integers(0, len(VALID_TEXT)), st.integers(0, 20), st.sampled_from(PIECES)), max_size=4))
def test_spliced_specs(splices: list[tuple[int, int, str]]) -> None:
    text = VALID_TEXT
    for place, removed, piece in splices:
        text = text[:place] + piece + text[place + removed :]
    holds(text)


def keys(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all keys and items."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    paths = []
    for key, inner in entries:
        paths += [(*above, key), *keys(inner, (*above, key))]
    return paths


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([63, 64, 4096, 8192, 10_000, 2**31 - 1, 2**31, 2**63, 10**60, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e308]),
)
WORDS = st.sampled_from(
    ["mla", "gqa", "moe", "dense", "yarn", "llama3", "none", "bf16", "max", "x" * 100, "", "\n", "class"]
)
VALUES = st.one_of(
    NUMBERS, WORDS, st.none(), st.booleans(), st.just([]), st.just({}), st.just({"kind": "yarn"}), st.just([1, 2])
)


@st.composite
def mutated_specs(draw: st.DrawFn) -> dict[str, Any]:
    """The valid spec or its GQA variant with a few keys deleted, renamed or given another value."""
    spec = copy.deepcopy(VALID)
    if draw(st.booleans()):
        spec["attention"] = copy.deepcopy(GQA)
    for _ in range(draw(st.integers(0, 3))):
        *above, key = draw(st.sampled_from(keys(spec) or [("name",)]))
        holder = spec
        for part in above:
            holder = holder[part]
        change = draw(st.sampled_from(["delete", "rename", "replace"]))
        if change == "delete" and key in (holder if isinstance(holder, dict) else range(len(holder))):
            del holder[key]
        elif change == "rename" and isinstance(holder, dict) and key in holder:
            holder[draw(st.sampled_from([key[1:], key + "s", "kind", "theta"]))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw(VALUES))
    return spec


@fuzzed
@given(mutated_specs())
def test_mutated_specs(spec: dict[str, Any]) -> None:
    loaded = holds(json.dumps(spec, indent=1))
    if loaded is not None:
        assert check(loaded) == []
        # What was accepted says the same when it is written out and read again.
        assert loads(json.dumps(loaded.model_dump(mode="json")), "again.yaml") == loaded


@fuzzed
@given(mutated_specs())
def test_every_finding_names_a_key_at_its_position(spec: dict[str, Any]) -> None:
    text = json.dumps(spec, indent=1)
    document: Document = read(decode(text, "spec.yaml"), "spec.yaml")
    try:
        loads(text, "spec.yaml")
    except DscError as error:
        for finding in error.findings:
            assert finding.position == document.position(finding.key)
            if finding.code == "DSC014":
                line = text.splitlines()[finding.position.line - 1]
                assert line[finding.position.column - 1 :].startswith(json.dumps(finding.key[-1]))
