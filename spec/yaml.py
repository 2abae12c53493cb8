"""Text -> plain values with the position of every key, from the small part of YAML that specs need.

One document of mappings, lists and scalars. Anchors, aliases, tags, merge keys and nested keys are refused: a spec has
no need of them, and they are the source of YAML's surprises and expansion bombs. The tree is built from parser events,
so that limits hold before anything large exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from dsc.spec.errors import Code, DscError, Finding, Position
from dsc.spec.scalars import LONGEST_NUMBER, is_number, resolve
from dsc.spec.words import shown

MAX_DEPTH = 32  # the language itself nests six deep
MAX_EVENTS = 5_000  # more than the longest layer schedule needs

Key = tuple[str | int, ...]

UNREAD = object()
"""Stands for a value that was refused; no schema accepts it."""


@dataclass
class Document:
    """What a file says and where."""

    root: object = None
    positions: dict[Key, Position] = field(default_factory=dict)
    """Of every key, of every list item, and of the root at ()."""
    findings: list[Finding] = field(default_factory=list)
    unread: set[Key] = field(default_factory=set)
    """Keys whose values were refused; other errors at or below them only follow from that."""

    def position(self, key: Key) -> Position:
        """Of a key, or of the innermost mapping around it where the key is missing."""
        while key not in self.positions:
            key = key[:-1]
        return self.positions[key]

    def readable(self, key: Key) -> bool:
        return not any(key[:length] in self.unread for length in range(len(key) + 1))


def read(text: str, file: str) -> Document:
    """The one document of a text. Raises a DscError where nothing can be read beyond the first findings."""
    return _Reader(text, file).read()


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)
        self._seen = 0
        self._here = Position(file, 1, 1)
        self._document = Document(positions={(): self._here})

    def read(self) -> Document:
        self._next()  # the start of the stream
        if isinstance(self._next(), StreamEndEvent):
            self._stop("DSC006", "the file is empty", "`dsc init` writes a spec to start from")
        root = self._next()
        self._document.positions[()] = self._here
        self._document.root = self._node(root, (), 0)
        self._next()  # the end of the document
        if isinstance(self._next(), DocumentStartEvent):
            self._refuse("a second document", "keep one document per file, without `---` between", ())
        return self._document

    def _node(self, event: Any, key: Key, depth: int) -> object:
        """The value that starts with an event; list items and mappings recurse, at most MAX_DEPTH deep."""
        if depth > MAX_DEPTH:
            self._stop("DSC004", f"the file is nested more than {MAX_DEPTH} levels deep", "a spec nests six deep")
        if isinstance(event, AliasEvent):
            self._refuse(f"the alias *{event.anchor}", "write the value out", key)
            return self._unread(key)
        self._refuse_properties(event, key)
        value: object
        if isinstance(event, ScalarEvent):
            value = self._scalar(event, key)
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(key, depth)
        else:
            value = self._list(key, depth)
        # An anchor leaves a value as it is, a tag changes what it means.
        return value if event.tag is None else self._unread(key)

    def _mapping(self, key: Key, depth: int) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            name = self._name(event, key, depth)
            below = (*key, name)
            if name in entries:
                first = self._document.positions[below].line
                self._find("DSC007", f"the key {shown(name)} is given twice, first on line {first}", "keep one", below)
            self._document.positions.setdefault(below, self._here)
            value = self._node(self._next(), below, depth + 1)
            entries.setdefault(name, value)
        return entries

    def _name(self, event: Any, key: Key, depth: int) -> str:
        """The text of a key. What is no text, such as `1:` or `null:`, is a name too; the schema will not know it."""
        if isinstance(event, ScalarEvent):
            self._refuse_properties(event, key)
            if event.value == "<<" and not event.style:
                self._refuse("the merge key '<<'", "write the keys out", key)
                self._unread(key)
            return str(event.value)
        position = self._here
        what = "an alias" if isinstance(event, AliasEvent) else "a mapping or a list"
        self._refuse(f"{what} as a key", "write a plain name", key)
        if not isinstance(event, AliasEvent):
            self._node(event, (*key, ""), depth + 1)
        self._unread(key)
        self._here = position
        return f"the key of {position.line}:{position.column}"

    def _list(self, key: Key, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            below = (*key, len(items))
            self._document.positions.setdefault(below, self._here)
            items.append(self._node(event, below, depth + 1))
        return items

    def _scalar(self, event: Any, key: Key) -> object:
        text = str(event.value)
        if event.style:  # quoted, literal or folded
            return text
        if len(text) <= LONGEST_NUMBER:
            return resolve(text)
        if not is_number(text):
            return text
        self._here = self._document.positions[key]
        self._find("DSC004", f"a number of {len(text)} characters", "write a number that a model can have", key)
        return self._unread(key)

    def _refuse_properties(self, event: Any, key: Key) -> None:
        if event.anchor is not None:
            self._refuse(f"the anchor &{event.anchor}", "remove it", key)
        if event.tag is not None:
            self._refuse(f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')}", "remove it", key)

    def _next(self) -> Any:
        self._seen += 1
        if self._seen > MAX_EVENTS:
            self._stop("DSC004", f"the file has more than {MAX_EVENTS} values", "a spec is a small mapping")
        try:
            event = next(self._events)
        except MarkedYAMLError as error:
            self._syntax(error)
        except Exception:  # escapes beyond Unicode and some directives trip the parser with errors of other types
            self._stop("DSC003", "this is not YAML from here on", "look for an escape or a directive out of range")
        self._here = Position(self._file, event.start_mark.line + 1, event.start_mark.column + 1)
        return event

    def _unread(self, key: Key) -> object:
        self._document.unread.add(key)
        return UNREAD

    def _refuse(self, what: str, help: str, key: Key) -> None:
        self._find("DSC005", f"{what}: specs do not use this part of YAML", help, key)

    def _find(self, code: Code, message: str, help: str, key: Key) -> None:
        self._document.findings.append(Finding(code, message, key, help, self._here))

    def _stop(self, code: Code, message: str, help: str) -> NoReturn:
        self._find(code, message, help, ())
        raise DscError(self._document.findings)

    def _syntax(self, error: MarkedYAMLError) -> NoReturn:
        problem = str(error.problem)
        known = next((entry for entry in _SYNTAX if problem.startswith(entry[0])), None)
        mark = error.context_mark if known is not None and known in _UNFINISHED else error.problem_mark
        if mark is not None:
            self._here = Position(self._file, mark.line + 1, mark.column + 1)
        if known is None:
            self._stop("DSC003", f"this is not YAML: {problem}", "quote texts that hold special characters")
        self._stop("DSC003", known[1], known[2])


# How the parser's problems start, what they mean, what would be right. What is unfinished shows where it starts: the
# parser notices it on a later line only.
_UNFINISHED = (
    ("could not find expected ':'", "a line that is no key", "write `key: value`"),
    ("expected ',' or", "a bracket that is not closed, or a comma that is missing", "close the bracket"),
    ("found unexpected end of stream", "a quote that is not closed", "close the quote"),
)
_SYNTAX = (
    *_UNFINISHED,
    (
        "mapping values are not allowed",
        "a ':' where no key can be",
        "check the indentation; quote a text that holds ': '",
    ),
    ("found character '\\t'", "a tab where YAML wants spaces", "indent with spaces"),
    ("found character", "a text that starts with a character that YAML reserves", "quote the text"),
    ("expected <block end>", "this line does not line up with those before it", "indent the keys of one mapping alike"),
    ("found unknown escape", "an escape that YAML does not know", "use single quotes, or double the backslash"),
    ("found incompatible YAML", "a version of YAML other than 1", "remove the %YAML line"),
)
