"""The language as its JSON Schema describes it, key by key: what `dsc explain KEY` and spec/README.md say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dsc.spec.model import ModelSpec

Node = Mapping[str, Any]

LARGEST = 2**31 - 1  # what bounds every size; not worth a word for each


@dataclass(frozen=True)
class Entry:
    """One key. `key` is dotted, with [] for each item of a list and a name in <> where the user gives it."""

    key: str
    kinds: tuple[str, ...]
    """Of the sections that have it, where `kind` chooses the section."""
    takes: str
    default: str | None
    """As YAML; None for a key that has to be there."""
    text: str

    @property
    def section(self) -> str:
        """The top of the file, or the key of the root that it stands below."""
        return self.key.split(".")[0].split("[")[0]


def entries() -> list[Entry]:
    """Every key of a spec, in the schema's order. One that several kinds have stands once if it is the same in all."""
    schema = ModelSpec.model_json_schema()
    merged: dict[object, Entry] = {}
    for entry in _section(schema, schema, "", ()):
        alike = entry.key if _is_kind(entry) else (entry.key, entry.takes, entry.default, entry.text)
        first = merged.setdefault(alike, entry)
        merged[alike] = replace(
            first,
            kinds=_together(first.kinds, entry.kinds),
            default=first.default or entry.default if _is_kind(entry) else first.default,
        )
    return [_of_kinds(entry) if _is_kind(entry) else entry for entry in merged.values()]


def _is_kind(entry: Entry) -> bool:
    return entry.key.endswith(".kind") and bool(entry.kinds)


def _together(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def _of_kinds(entry: Entry) -> Entry:
    """`kind` itself: it takes what chooses a section."""
    return replace(
        entry, kinds=(), takes=", ".join(entry.kinds), text="Which of these it is; each has keys of its own."
    )


def _section(schema: Node, section: Node, path: str, kinds: tuple[str, ...]) -> Iterator[Entry]:
    for name, node in section["properties"].items():
        key = f"{path}.{name}".removeprefix(".")
        required = name in section.get("required", ())
        default = None if required else _yaml(node.get("default"))
        yield Entry(key, kinds, _takes(schema, node), default, _text(schema, node))
        yield from _inside(schema, node, key)


def _inside(schema: Node, node: Node, key: str) -> Iterator[Entry]:
    """The keys of the sections that a value may be, of each item and of what has names of the user's choice."""
    for choice in _choices(schema, node):
        if "properties" in choice:
            tag = choice["properties"].get("kind", {}).get("const")
            yield from _section(schema, choice, key, () if tag is None else (str(tag),))
        if choice.get("type") == "array":
            yield from _inside(schema, choice["items"], f"{key}[]")
        if choice.get("additionalProperties") or choice.get("patternProperties"):
            yield Entry(f"{key}.<name>", (), "section", "none", _NAMED)


_NAMED = "Any number of them by names of your own, which layers then give; each with the keys of its kind."


def _choices(schema: Node, node: Node) -> list[Node]:
    """What a value may be, references followed."""
    if "$ref" in node:
        return _choices(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    several = node.get("anyOf") or node.get("oneOf")
    return [node] if several is None else [choice for inner in several for choice in _choices(schema, inner)]


def _takes(schema: Node, node: Node) -> str:
    described = dict.fromkeys(_one(schema, choice) for choice in _choices(schema, node))
    return " or ".join(described)


def _one(schema: Node, node: Node) -> str:
    """What one choice is, in words."""
    words = node.get("enum") or ([node["const"]] if "const" in node else None)
    if words:
        return ", ".join(map(str, words))
    kind = node.get("type")
    if kind == "array":
        return f"a list of {_takes(schema, node['items'])}" if "properties" not in node["items"] else "a list"
    names = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text", "null": "null"}
    return names[kind] + _bounds(node) if kind in names else "section"


def _bounds(node: Node) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {node[bound]:g}" for bound, sign in signs.items() if node.get(bound, LARGEST) != LARGEST]
    return f" {', '.join(found)}" if found else ""


def _text(schema: Node, node: Node) -> str:
    """Its own description, else that of the one section that it can be."""
    sections = [choice["description"] for choice in _choices(schema, node) if "description" in choice]
    return str(node.get("description") or (sections[0] if len(sections) == 1 else ""))


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
