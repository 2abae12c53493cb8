"""What a change of a spec breaks for those who have checkpoints, code, caches and plans of the old one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.facts.breaking_rules import RULES, Rule
from dsc.compiler.facts.diff import Changed, spec_changes
from dsc.compiler.facts.surface import CallSignature, surface
from dsc.compiler.graph.cache_rows import CacheRow, cache_rows
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.router import BiasedSelectionScores
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.router import Balance

FORWARD = "Model.forward"
MTP = "mtp."

# Keys whose change alone makes other numbers of the same weights, by what they are about. Any other is BRK205.
MEANINGS = {
    "BRK201": re.compile(r"\brope\b"),
    "BRK202": re.compile(r"\brouter\b|\bnum_experts_per_tok$"),
    "BRK203": re.compile(r"\b(\w+_)?eps$"),
    "BRK204": re.compile(r"multiplier$|\bswiglu_limit$"),
}
# Keys that a plan of the old spec assumes to be the same.
PLANNED = re.compile(r"^(cluster|placement|serving|workload|precision\.optimizer|precision\.parameters)\b")


@dataclass(frozen=True)
class Side:
    """One of the two specs, and what follows from it."""

    spec: ModelSpec
    graph: Graph
    """As the spec has it, before kernels are chosen."""
    names: Mapping[str, str]
    """What Hugging Face's model type calls the parts of a checkpoint whose names differ from type to type."""
    files: Mapping[str, str]
    """The package."""


@dataclass(frozen=True)
class Break:
    code: str
    message: str
    key: str = ""
    """The key of the spec that caused it, where it is a single key."""

    @property
    def rule(self) -> Rule:
        return RULES[self.code]


def breaks(old: Side, new: Side) -> list[Break]:
    """Everything that breaks, in the order of the rules."""
    changes = spec_changes(old.spec, new.spec)
    tensors = [*_tensors(old, new), *_names_on_disk(old, new)]
    found = [*tensors, *_meaning(old, new, changes, loads=not tensors), *_python(old, new), *_plan(old, new, changes)]
    return sorted(found, key=lambda breach: breach.code)


def _tensors(old: Side, new: Side) -> Iterator[Break]:
    """Multi-token prediction that NEW adds is passed over. A head of its own is not, where NEW ties it: load_hf takes
    it only where it equals the embedding, which a trained one does not."""
    before, after = (_shapes(side.graph) for side in (old, new))
    yield from _grouped("BRK101", {name: _list(before[name]) for name in before if name not in after})
    added = {name: _list(after[name]) for name in after if name not in before}
    if any(name.startswith(MTP) for name in before):
        yield from _grouped("BRK102", added)
    else:
        yield from _grouped("BRK102", {name: shape for name, shape in added.items() if not name.startswith(MTP)})
    other = [name for name in before if name in after and before[name] != after[name]]
    yield from _grouped("BRK103", {name: f"{_list(before[name])} -> {_list(after[name])}" for name in other})


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Of all that a checkpoint holds: parameters, and the selection biases, which no gradient trains."""
    shapes = {
        name: tuple(dim.value() for dim in parameter.type.shape) for name, parameter in graph.parameters().items()
    }
    for method in graph.methods(graph.root):
        for path, node, _ in graph.walk(method.key):
            if isinstance(node.op, BiasedSelectionScores):
                experts = tensor(node.input_types[0]).shape[-1].value()
                shapes[f"{path}{node.op.attribute()}"] = (experts,)
    return shapes


def _list(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _grouped(code: str, tensors: Mapping[str, str]) -> Iterator[Break]:
    """One finding for tensors that are alike in all layers."""
    groups: dict[tuple[str, str], int] = {}
    for name, what in tensors.items():
        alike = (re.sub(r"\.\d+\.", ".*.", name), what)
        groups[alike] = groups.get(alike, 0) + 1
    for (name, what), count in groups.items():
        yield Break(code, f"{name} {what}" + (f", {count} tensors" if count > 1 else ""))


def _names_on_disk(old: Side, new: Side) -> Iterator[Break]:
    for part, name in old.names.items():
        if name != new.names[part] and any(".experts" in path or ".gate." in path for path in old.graph.parameters()):
            yield Break("BRK104", f"{part}: {name} -> {new.names[part]}")


def _meaning(old: Side, new: Side, changes: list[Changed], loads: bool) -> Iterator[Break]:
    """Where forward is another function: the keys that make it one, and that none of the shapes shows."""
    before, after = bare(old.spec), bare(new.spec)
    if _forward(before) == _forward(after):
        return
    matters = {change.name: change for change in spec_changes(before, after)}
    left = []
    for change in (change for change in changes if change.name in matters):
        code = next((code for code, keys in MEANINGS.items() if keys.search(change.name)), None)
        if code is None:
            left.append(change)
        elif loads or None not in (change.first, change.second):  # else the tensors say that a section came or went
            yield _changed(code, change)
    if loads:
        yield from (_changed("BRK205", change) for change in left)


def bare(spec: ModelSpec) -> ModelSpec:
    """The part of a spec that says what forward computes: no training, no types, no machines."""
    fields = type(spec).model_fields
    trained = {name: _without_balance(ffn) for name, ffn in spec.ffns.items() if isinstance(ffn, MoeFfn)}
    trainers = ("training", "mtp", "z_loss", "rl")
    defaults = ("initializer_range", "precision", "workload", "cluster", "placement", "serving", *trainers)
    return spec.model_copy(
        update={
            **{key: fields[key].get_default(call_default_factory=True) for key in defaults},
            "name": "bare",
            "max_position_embeddings": 1,
            "ffn": spec.ffn.model_copy(update=trained),
        }
    )


def _without_balance(moe: MoeFfn) -> MoeFfn:
    return moe.model_copy(update={"router": moe.router.model_copy(update={"balance": Balance()})})


def _forward(spec: ModelSpec) -> tuple[object, ...]:
    """Every op of forward with the module it runs in, and every number that the code names."""
    graph = build_graph(spec)
    ops = tuple((path, node.op) for path, node, _ in graph.walk(FORWARD))
    return ops, tuple((constant.name, constant.text) for constant in graph.constants)


def _python(old: Side, new: Side) -> Iterator[Break]:
    if old.spec.package_name != new.spec.package_name:
        yield Break("BRK301", f"{old.spec.package_name} -> {new.spec.package_name}", "name")
    before, after = surface(old.files), surface(new.files)
    for name in sorted(before.keys() - after.keys()):
        if not any(name.startswith(f"{gone}.") for gone in before.keys() - after.keys() if gone):
            yield Break("BRK302", name)
    for name in sorted(before.keys() & after.keys()):
        was, becomes = before[name], after[name]
        if isinstance(was, CallSignature) and isinstance(becomes, CallSignature) and not becomes.accepts_calls_of(was):
            yield Break("BRK303", f"{name}({', '.join(was.positional)}) -> ({', '.join(becomes.positional)})")


def _plan(old: Side, new: Side, changes: list[Changed]) -> Iterator[Break]:
    if (before := _rows(old.graph)) != (after := _rows(new.graph)):
        yield Break("BRK401", f"a token keeps {_kept(before)} -> {_kept(after)}")
    if new.spec.max_position_embeddings < old.spec.max_position_embeddings:
        yield from (_changed("BRK402", change) for change in changes if change.name == "max_position_embeddings")
    for change in changes:
        if PLANNED.search(change.name):
            yield _changed("BRK403", change)
    weights = [
        sum(parameter.type.bytes.value() for parameter in side.graph.parameters().values()) for side in (old, new)
    ]
    if weights[1] > weights[0]:
        yield Break("BRK403", f"weights of {weights[0]:,} -> {weights[1]:,} bytes")


def _rows(graph: Graph) -> list[str]:
    """What each layer keeps of a token: name, shape, type, and of how many tokens."""
    layers = cache_rows(graph, FORWARD).values()
    return [_row(row) for rows in layers for row in rows]


def _row(row: CacheRow) -> str:
    shape = _list(tuple(dim.value() for dim in row.shape))
    return f"{row.name} {shape} of {row.dtype}" + (f" for {row.window} tokens" if row.window is not None else "")


def _kept(rows: list[str]) -> str:
    return f"{', '.join(dict.fromkeys(rows))} in {len(rows)} rows"


def _changed(code: str, change: Changed) -> Break:
    return Break(code, f"{change.name}: {_text(change.first)} -> {_text(change.second)}", change.name)


def _text(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
