"""One changed line of a spec changes the lines that mean it, and no other: for a number, one line of dims.py."""

from collections.abc import Iterator, Mapping
from difflib import ndiff
from typing import Any

import pytest

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.emit.model import kernel_functions
from dsc.compiler.graph.graph import Graph
from dsc.compiler.hf import family
from dsc.compiler.kernels import tuning
from dsc.compiler.kernels.registry import kernel_named
from dsc.spec.checks import check
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.words import dotted
from dsc.spec.zoo import MODELS, names

COUNTS = {"README.md", "dsc.lock.json"}  # figures and hashes stand here so that they churn nowhere else

# What is changed, from what to what, and the line written anew, without its comment: of dims.py, or of infer/decode.py.
CHANGES: dict[str, tuple[tuple[str | int, ...], object, str]] = {
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
    "what the cache is kept in": (
        ("precision", "kv_cache"),
        "bf16",
        "dtype = torch.bfloat16 if x.dtype is torch.float32 else x.dtype",
    ),
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
    assert rewritten(before, after) == {"dims.py" if line[0].isupper() else "infer/decode.py": [line]}


def test_a_feature_that_is_taken_away_leaves_no_trace(tiny: tuple[ModelSpec, dict[str, str]]) -> None:
    spec, before = tiny
    after = emit(build(changed(spec, ("mtp",), None)))
    assert after.keys() == before.keys() - {"infer/speculation.py"}
    for text in (text for name, text in after.items() if name != "dsc.lock.json"):
        assert "mtp" not in text.lower() and "multi-token" not in text.lower()
    kept = [line for line in ndiff(before["model.py"].splitlines(), after["model.py"].splitlines()) if line[0] == "+"]
    assert len(kept) <= 6, kept  # what handed things on to the predictor is written anew; all else only goes


# --- every number of every model of the zoo

Key = tuple[str | int, ...]

ZOO = [pytest.param(name, marks=[] if name == "tiny" else pytest.mark.slow) for name in names(MODELS)]
LANES: dict[str, dict[str, Any] | None] = {"plain": None, "kernels": {"kind": "h800", "nodes": 2}}
LEFT_OUT = {  # sections whose numbers are no dims
    "cluster",
    "placement",
    "precision",  # the blocks of FP8, which are all as wide as each other
    "tokens",  # ids, which stand once, in CONFIG
}
STRUCTURAL = (  # how keys end whose numbers some model ties to others, or that decide which lines there are
    "latent_norm_eps",  # Hugging Face's types have 1e-6, and no others
    "norm.eps",  # Qwen3's type has one eps, for the heads of q and k too
    "mscale_all_dim",  # unlike mscale, it would scale cos and sin
    "mtp.depth",  # a line of the loss for each
    "rl.temperature",  # with 1 no logits are divided
    "weight_block",  # see LEFT_OUT
)
TILE = '"num_warps": '  # stands in every tile of a kernel's launch; rows of a tile may follow a width


def numbers(value: object, key: Key = ()) -> Iterator[tuple[Key, float]]:
    """Every number of a spec, by its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, (*key, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*key, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def structure(program: Program) -> object:
    """Which ops there are, what they call and how, and what Hugging Face calls the model: all but the numbers."""
    graphs = (program.training, program.serving)
    nodes = [
        (b.key, n.id, n.op.kind, n.op.requires) for graph in graphs for b in graph.blocks.values() for n in b.nodes()
    ]
    rl = program.spec.rl
    plain = rl and (rl.temperature == 1, rl.epochs == 1)  # numbers that leave no line
    return nodes, [forms(program, graph) for graph in graphs], family(program.spec), program.notes, plain


def forms(program: Program, graph: Graph) -> dict[tuple[str, str], object]:
    """What dims decide of a kernel's lines: whether its tiles are padded, whether they are loaded by descriptors."""
    target = program.target
    called = {name for name, _ in kernel_functions(graph)} if target else ()
    told = {name: kernel_named(name).values(graph, program.spec, target) for name in called}
    return {(name, key): form for name, values in told.items() for key, form in values.items() if type(form) is bool}


def other_values(value: float) -> list[float]:
    """In order of preference: twice and half the number keep most relations between sizes."""
    return [value * 2, value // 2, value + 1, value - 1] if isinstance(value, int) else [value * 2, value / 2]


def with_another(program: Program, keys: list[Key], value: float) -> dict[str, str] | None:
    """The package with another number there; none if all others are refused or make another structure of it."""
    for other in other_values(value):
        try:
            spec = program.spec
            for key in keys:
                spec = changed(spec, key, other)
            if not check(spec) and structure(after := build(spec)) == structure(program):
                return emit(after)
        except (ValueError, tuning.TileTooLarge):
            continue
    return None


def together(found: Mapping[Key, float], key: Key) -> list[list[Key]]:
    """Which numbers are changed at once: this one, else those that have to stay equal to it.

    Hugging Face's types have one value for the same number of every attention; kernels without padding exist where
    the dims of a head are equal.
    """
    if key[0] != "attention":
        return [[key]]
    attention = {one: value for one, value in found.items() if one[0] == "attention"}
    alike = [one for one in attention if one[2:] == key[2:] != ()]
    equal = [one for one, value in attention.items() if type(value) is int and value == found[key]]
    return [[key], alike, equal]


def without_tiles(files: Mapping[str, str]) -> dict[str, str]:
    return {
        path: "\n".join(line for line in text.splitlines() if TILE not in line or not path.startswith("kernels/"))
        for path, text in files.items()
    }


@pytest.fixture
def _one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuning table chooses the same tiles for all dims, so that it has no say in what changes."""
    table = tuning.table

    def first_rows(kernel: str) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for launch, rows in table(kernel).items():
            chosen = {arch: row for row in reversed(rows) for arch in row["arch"]}
            found[launch] = [{"arch": [arch], "tile": r["tile"], "origin": r["origin"]} for arch, r in chosen.items()]
        return found

    monkeypatch.setattr(tuning, "table", first_rows)


@pytest.mark.usefixtures("_one_tile")
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", ZOO)
def test_a_number_is_one_line(name: str, lane: str) -> None:
    program = build(load(name).model_copy(update={"cluster": None}))
    program = build(ModelSpec.model_validate(program.spec.model_dump() | {"cluster": LANES[lane]}))
    before = without_tiles(emit(program))
    told = {line.split("# ")[1] for line in before["dims.py"].splitlines() if line[:1].isupper() and "# " in line}
    found = {key: value for key, value in numbers(program.spec.model_dump()) if key[0] not in LEFT_OUT}
    for key, value in found.items():
        packages = ((keys, with_another(program, keys, value)) for keys in together(found, key) if keys)
        keys, after = next((one for one in packages if one[1]), ([], None))
        if after is not None:
            lines = rewritten(before, without_tiles(after))
            assert lines.keys() <= {"dims.py"} and len(lines.get("dims.py", [])) <= len(keys), (keys, lines)
            told -= {dotted(key)} if lines else set()
    assert not [key for key in told if not key.endswith(STRUCTURAL)], "no change of these was seen in dims.py"
