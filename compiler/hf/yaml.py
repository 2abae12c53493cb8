"""A spec as the text of a YAML file: the schema's order, one key a line, small mappings of scalars in a list on one."""

from collections.abc import Mapping


def to_yaml(spec: Mapping[str, object], comment: str) -> str:
    """Deterministic; `comment` stands on top, each of its lines behind a `#`."""
    head = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*head, *_lines(spec, indent="")]) + "\n"


def _lines(section: Mapping[str, object], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            lines += [f"{indent}{key}:", *(f"{indent}  - {_flow(item)}" for item in value)]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _float(value)
    return str(value)


def _float(value: float) -> str:
    """Always with a point: YAML 1.1 takes 1e-6 for a text."""
    mantissa, exponent, power = repr(value).partition("e")
    if not exponent:
        return mantissa
    point = "" if "." in mantissa else ".0"
    return f"{mantissa}{point}e{int(power):+d}"
