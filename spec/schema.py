"""Look-ups in the schema: which section a key belongs to, which keys and values a section or a field takes."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, get_args, get_origin

from dsc.spec.base import Section

Key = tuple[str | int, ...]


def follow(root: type[Section], location: Sequence[str | int]) -> tuple[Key, type[Section]]:
    """A location of pydantic -> the key in the file and the section that the key's last name stands in.

    Pydantic puts the kind that a union chose into the location, ("attention", "mla", "rope"); the file has no such key.
    """
    key: list[str | int] = []
    section, inner = root, root
    offered: list[type[Section]] = []
    tag_follows = False
    for part in location:
        if tag_follows:
            inner = next(choice for choice in offered if part in kinds(choice))
            tag_follows = False
            continue
        key.append(part)
        if isinstance(part, int):
            continue
        section = inner
        field = section.model_fields.get(part)
        offered = list(_sections(field.annotation)) if field else []
        tag_follows = field is not None and field.discriminator is not None
        inner = offered[0] if offered else section
    return tuple(key), section


def choices(section: type[Section], name: str) -> list[str]:
    """The values that a field of fixed words takes, or the kinds of one that is a union of sections."""
    field = section.model_fields[name]
    if field.discriminator is not None:
        return [kind for choice in _sections(field.annotation) for kind in kinds(choice)]
    return list(_literals(field.annotation))


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
