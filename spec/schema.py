"""Look-ups in the schema: which section a key belongs to, which keys and values a section or a field takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from pydantic import Tag

from dsc.spec.base import Section

Key = tuple[str | int, ...]


def follow(root: type[Section], location: Sequence[str | int]) -> tuple[Key, type[Section]]:
    """A location of pydantic -> the key in the file and the section that the key's last name stands in.

    Pydantic puts the member that a union chose into the location, ("attention", "mla", "rope"), and after a key that is
    wrong itself the word "[key]"; the file has neither.
    """
    key, section, _ = _walked(root, location)
    return key, section


def choices(root: type[Section], location: Sequence[str | int]) -> list[str]:
    """The values that a field of fixed words takes, or the kinds of one that is a union of sections."""
    _, _, value = _walked(root, location)
    offered = dict.fromkeys(kind for choice in _sections(value.annotation) for kind in _kinds(choice))
    return list(offered or _literals(value.annotation))


def _walked(root: type[Section], location: Sequence[str | int]) -> tuple[Key, type[Section], "_Value"]:
    """And what the schema says of the value there."""
    key: list[str | int] = []
    section, value = root, _Value(root)
    for part in location:
        if part in value.members:
            value = value.members[str(part)]
        elif part != "[key]":
            key.append(part)
            if isinstance(part, str):
                section = value.section or section
            value = value.inner(part)
    return tuple(key), section, value


@dataclass(frozen=True)
class _Value:
    """What the schema says about one value."""

    annotation: object

    @property
    def members(self) -> dict[str, "_Value"]:
        """Of a union that chooses by a word: each member by that word."""
        found: dict[str, _Value] = {}
        for member in get_args(_bare(self.annotation)):
            tags = [mark.tag for mark in getattr(member, "__metadata__", ()) if isinstance(mark, Tag)]
            found.update((tag, _Value(member)) for tag in tags or _kinds(_bare(member)))
        return found

    @property
    def section(self) -> type[Section] | None:
        """The section that it is, where it can be one only."""
        found = list(dict.fromkeys(_sections(self.annotation)))
        return found[0] if len(found) == 1 else None

    def inner(self, part: str | int) -> "_Value":
        """What stands under a key or in a place of it."""
        bare, section = _bare(self.annotation), self.section
        if get_origin(bare) in (list, dict):
            return _Value(get_args(bare)[-1])
        field = section.model_fields.get(str(part)) if section else None
        return _Value(field.annotation if field else _named_sections(section))


def kinds(section: type[Section]) -> tuple[str, ...]:
    """The words of `kind` that choose a section."""
    return get_args(section.model_fields["kind"].annotation)


@cache
def homes(root: type[Section]) -> dict[str, tuple[str, type[Section]]]:
    """Every key of the language -> the first section that has it, with its dotted path."""
    found: dict[str, tuple[str, type[Section]]] = {}
    for path, section in _walk(root, ""):
        for name in section.model_fields:
            found.setdefault(name, (path, section))
    return found


def _walk(section: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    yield path, section
    for name, field in section.model_fields.items():
        for inner in _sections(field.annotation):
            yield from _walk(inner, f"{path}.{name}".removeprefix("."))


@cache
def _named_sections(section: type[Section] | None) -> object:
    """What a section holds under names of the user's choice; None where every key is the language's."""
    extra = get_type_hints(section, include_extras=True).get("__pydantic_extra__") if section else None
    return get_args(extra)[-1] if get_origin(extra) is dict else None


def _bare(annotation: object) -> object:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _kinds(annotation: object) -> tuple[str, ...]:
    if isinstance(annotation, type) and issubclass(annotation, Section) and "kind" in annotation.model_fields:
        return kinds(annotation)
    return ()


def _sections(annotation: object) -> Iterator[type[Section]]:
    """The sections that an annotation mentions, through unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _literals(annotation: object) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for argument in get_args(annotation):
            yield from _literals(argument)
