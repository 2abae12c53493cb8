"""How values and keys read in an error, and the nearest name to a misspelt one."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

LONGEST_SHOWN = 60


def shown(value: object) -> str:
    """A value of the file, short and printable. YAML's null, true and false keep their spelling."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value[: LONGEST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def dotted(key: Iterable[str | int]) -> str:
    """attention.rope.theta, layers[0].repeat."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in key)
    return text.removeprefix(".")


def flat(section: object, key: tuple[str | int, ...] = ()) -> Iterator[tuple[str, object]]:
    """The scalars of a spec by dotted key, without those that are null; a list of scalars is one value."""
    if isinstance(section, dict):
        for name, value in section.items():
            yield from flat(value, (*key, name))
    elif isinstance(section, list) and any(isinstance(item, dict) for item in section):
        for index, value in enumerate(section):
            yield from flat(value, (*key, index))
    elif section is not None:
        yield dotted(key), section


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name that a misspelt word most likely stands for."""
    if not isinstance(word, str):
        return None
    matches = get_close_matches(word.lower(), list(known), n=1)
    return matches[0] if matches else None


def one_of(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _printable(key: str) -> str:
    return key if key.isprintable() and len(key) <= LONGEST_SHOWN else shown(key)
