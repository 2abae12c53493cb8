"""Validates a document against a section of the schema, with pydantic's errors put in terms of the spec."""

import re
from typing import Any, TypeVar

from pydantic import ValidationError

from dsc.spec.base import Section
from dsc.spec.errors import Finding
from dsc.spec.scalars import LONGEST_NUMBER, resolve
from dsc.spec.schema import Key, choices, follow, homes, kinds
from dsc.spec.words import dotted, nearest, one_of, shown
from dsc.spec.yaml import Document

S = TypeVar("S", bound=Section)

Error = dict[str, Any]
"""One entry of ValidationError.errors(): type, loc, input, and a ctx with the bounds."""


def validate(section: type[S], document: Document) -> tuple[S | None, list[Finding]]:
    """The section, or every way in which the document is not one."""
    if not isinstance(document.root, dict):
        message = f"the file holds {_described(document.root)}, not a mapping"
        return None, [Finding("DSC006", message, help="write lines of `key: value`")]
    try:
        return section.model_validate(document.root), []
    except ValidationError as failed:
        return None, _findings(section, [dict(error) for error in failed.errors(include_url=False)])


def _findings(root: type[Section], errors: list[Error]) -> list[Finding]:
    """A misspelt key is also a missing one: only the misspelling is worth a finding."""
    missing = [follow(root, error["loc"])[0] for error in errors if error["type"] == "missing"]
    meant: dict[Key, Key] = {}
    findings = []
    for error in errors:
        key, section = follow(root, error["loc"])
        if _is_unknown(error, key, section):
            siblings = [str(other[-1]) for other in missing if other[:-1] == key[:-1]]
            name = nearest(key[-1], siblings)
            if name is not None:
                meant[key] = (*key[:-1], name)
            help = f"did you mean {name!r}?" if name is not None else _where_it_belongs(root, section, key)
            findings.append(Finding("DSC014", f"unknown key {shown(key[-1])}{_inside(key)}", key, help))
        else:
            findings.append(_finding(root, error))
    return [finding for finding in findings if finding.code != "DSC013" or finding.key not in meant.values()]


def _is_unknown(error: Error, key: Key, section: type[Section]) -> bool:
    """A section without a `kind`, under a name that would be the user's own, is one of the language's, misspelt."""
    of_the_user = section.model_config.get("extra") == "allow" and key[-1] not in section.model_fields
    return error["type"] == "extra_forbidden" or (
        of_the_user and error["type"] in ("union_tag_not_found", "model_attributes_type")
    )


def _where_it_belongs(root: type[Section], section: type[Section], key: Key) -> str:
    """For an unknown key: the section or the kind that has it, nearest first, else the nearest key, else all keys."""
    inside = homes(section).get(str(key[-1]), ("", section))[0]
    if inside:
        return f"it belongs in {dotted((*key[:-1], inside))}"
    if str(key[-1]) in homes(root):
        path, home = homes(root)[str(key[-1])]
        if path == dotted(key[:-1]):
            return f"it is a key of kind {one_of(kinds(home))}"
        return f"it belongs in {path}" if path else "it belongs at the top of the file"
    name = nearest(key[-1], section.model_fields)
    return f"one of {one_of(section.model_fields)}" if name is None else f"did you mean {name!r}?"


def _finding(root: type[Section], error: Error) -> Finding:
    """Any other error; the tables below hold the kinds of pydantic's errors that the schema can raise."""
    kind, value, bounds = error["type"], error["input"], error.get("ctx", {})
    if kind == "union_tag_not_found" and not isinstance(value, dict):
        kind = "model_type"
    key, _ = follow(root, error["loc"])
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        return Finding("DSC010", f"{dotted(key)} is {_described(value)}, not {expected}", key, _cure(value, expected))
    if kind in _BOUNDS:
        what, limit = _BOUNDS[kind]
        measured = f"is a list of {len(value)}" if isinstance(value, list) else f"is {shown(value)}"
        return Finding("DSC011", f"{dotted(key)} {measured}", key, what.format(bounds.get(limit)))
    if kind == "missing":
        return Finding("DSC013", f"the key {key[-1]!r} is missing{_inside(key)}", key, f"add `{key[-1]}: ...`")
    if kind == "union_tag_not_found":
        words = one_of(choices(root, error["loc"]))
        return Finding("DSC013", f"the key 'kind' is missing in {dotted(key)}", (*key, "kind"), f"one of {words}")
    if kind == "union_tag_invalid":
        return _unknown_word((*key, "kind"), value["kind"], choices(root, error["loc"]))
    if kind == "literal_error":
        return _unknown_word(key, value, choices(root, error["loc"]))
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return _malformed_name(key, value)
    return Finding("DSC010", f"{dotted(key)} cannot be {_described(value)}", key, "see `dsc schema`")


def _unknown_word(key: Key, value: object, known: list[str]) -> Finding:
    close = nearest(value, known)
    help = f"one of {one_of(known)}" if close is None else f"did you mean {close!r}? It is one of {one_of(known)}"
    return Finding("DSC012", f"{dotted(key)} is {shown(value)}", key, help)


def _malformed_name(key: Key, value: str) -> Finding:
    if key == ("name",):
        slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).lstrip("-0123456789")[:64].rstrip("-")
        rule = "lower-case letters and digits, in words joined by '-', '_' or '.', 64 characters at most"
    else:
        slug = re.sub(r"[^a-z0-9]+", "", value.lower()).lstrip("0123456789")[:32]
        rule = "one word of lower-case letters and digits, 32 characters at most"
    help = f"write {rule}" if not slug else f"write {slug!r}: {rule}"
    return Finding("DSC015", f"{dotted(key)} is {shown(value)}", key, help)


def _cure(value: object, expected: str) -> str:
    """What to write instead, exactly where the value shows what was meant."""
    if expected == "a mapping":
        return "write its keys below it, indented"
    meant = value
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        meant = resolve(value.strip().replace("_", "").replace(",", ""))
    if expected == "a whole number" and isinstance(meant, float) and meant.is_integer() and abs(meant) < 2**31:
        meant = int(meant)
    if isinstance(meant, bool) or not isinstance(meant, int | float) or "number" not in expected:
        return f"write {expected}"
    if expected == "a whole number" and isinstance(meant, float):
        return f"write {expected}"
    return f"write {meant}" + (", without quotes or separators" if isinstance(value, str) else "")


def _described(value: object) -> str:
    return f"the text {shown(value)}" if isinstance(value, str) else shown(value)


def _inside(key: Key) -> str:
    return f" in {dotted(key[:-1])}" if len(key) > 1 else ""


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}

# Type of the error -> what would be right, and which bound of the error says how much.
_BOUNDS = {
    "greater_than": ("write a number above {:g}", "gt"),
    "greater_than_equal": ("write a number of at least {:g}", "ge"),
    "less_than_equal": ("write a number of at most {}", "le"),
    "finite_number": ("write a finite number", ""),
    "too_short": ("write {} items or more", "min_length"),
    "too_long": ("write {} items or fewer", "max_length"),
    "string_too_short": ("write a text", "min_length"),
}
