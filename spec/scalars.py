"""Plain YAML scalars -> values, by the core schema of YAML 1.2.2 (section 10.3.2).

That is also what editors check against the JSON Schema: `no` and `2026-01-01` are texts, `1e-6` is a number.
"""

import re

LONGEST_NUMBER = 64  # far beyond any size; Python refuses to read integers of thousands of digits

_CONSTANTS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


def is_number(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in (_INTEGER, _OCTAL, _HEX, _FLOAT, _INFINITY, _NAN))


def resolve(text: str) -> object:
    """What a plain scalar of at most LONGEST_NUMBER characters means; without another meaning, a text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, base=0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text) or _NAN.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text
