"""A Hugging Face config -> spec, with the semantics and the defaults of transformers 5.23.0."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from dsc.compiler.hf.model_types import MODEL_TYPES
from dsc.compiler.hf.reader import NOT_SUPPORTED, NOT_UNDERSTOOD, ConfigReader, renamed
from dsc.compiler.hf.yaml import to_yaml
from dsc.spec.errors import DscError, Finding, Position
from dsc.spec.model import NAME_PATTERN, ModelSpec
from dsc.spec.words import dotted, one_of, shown

LONGEST_NAME = 64


def import_config(config: Mapping[str, object], name: str) -> dict[str, object]:
    """A spec's sections in the schema's order. Raises a DscError with every key that the language cannot express."""
    model_type = MODEL_TYPES[_type_name(config)]
    reader = ConfigReader(renamed(config, model_type.aliases))
    spec = {"name": name} | model_type.read(reader)
    reader.refuse_unknown()
    reader.raise_findings()
    return _validated(spec)


def import_path(path: Path) -> str:
    """The text of a spec from a config.json, or from a folder that holds one; named after the file or the folder."""
    path = path.resolve()
    file = path / "config.json" if path.is_dir() else path
    config = _parse(file)
    type_name = _type_name(config)
    origin = file.parent.name if file.name == "config.json" else file.stem
    spec = import_config(config, spec_name(origin, type_name))
    return to_yaml(spec, _comment(spec, type_name))


def spec_name(origin: str, fallback: str) -> str:
    """The name of a spec from that of a file or folder: DeepSeek-V3 -> deepseek-v3."""
    parts = [re.sub(r"\.+", ".", part).strip(".") for part in re.split(r"[^a-z0-9.]+", origin.lower())]
    name = "-".join(part for part in parts if part)[:LONGEST_NAME].rstrip(".-")
    return name if re.match(NAME_PATTERN, name) else fallback.replace("_", "-")


def _comment(spec: Mapping[str, object], type_name: str) -> str:
    lines = [f"Imported from a Hugging Face config.json of type {type_name}."]
    ffn = spec["ffn"]
    if isinstance(ffn, dict) and "moe" in ffn:
        lines.append("Such a file does not say how training spreads load over the experts: see router.balance.")
    return "\n".join(lines)


def _type_name(config: Mapping[str, object]) -> str:
    type_name = config.get("model_type")
    key, known = ("model_type",), f"known are {one_of(MODEL_TYPES)}"
    if not isinstance(type_name, str):
        says = "is missing" if type_name is None else f"is {shown(type_name)}"
        raise DscError([Finding(NOT_UNDERSTOOD, f"model_type {says}, must be a text", key, known)])
    if type_name not in MODEL_TYPES:
        raise DscError([Finding(NOT_SUPPORTED, f"the model type {shown(type_name)} is not supported", key, known)])
    return type_name


def _validated(spec: Mapping[str, object]) -> dict[str, object]:
    """In the schema's order. Sizes out of range are found here, under the spec's names."""
    try:
        return ModelSpec.model_validate(spec).model_dump(exclude_unset=True)
    except ValidationError as error:
        findings = [
            Finding(NOT_UNDERSTOOD, f"the config gives {dotted(item['loc'])} = {shown(item['input'])}: {item['msg']}")
            for item in error.errors()
        ]
        raise DscError(findings) from None


def _parse(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise _unreadable(file, error.msg, Position(str(file), error.lineno, error.colno)) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unreadable(file, reason, None) from None
    if not isinstance(config, dict):
        raise _unreadable(file, "not a mapping", None)
    return config


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    section = dict(pairs)
    if len(section) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"a key stands twice: {one_of(sorted({key for key in keys if keys.count(key) > 1}))}")
    return section


def _unreadable(file: Path, reason: str, position: Position | None) -> DscError:
    message = f"{file.name} cannot be read as a config: {reason}"
    return DscError([Finding(NOT_UNDERSTOOD, message, position=position)])
