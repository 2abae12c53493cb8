"""A Hugging Face config -> spec, with the semantics and the defaults of transformers 5.23.0."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from dsc.compiler.hf.locate import located
from dsc.compiler.hf.model_types import MODEL_TYPES
from dsc.compiler.hf.reader import NOT_SUPPORTED, NOT_UNDERSTOOD, ConfigReader, renamed
from dsc.compiler.hf.tokens import KEYS
from dsc.compiler.hf.wrapper import LanguageModel, language_model
from dsc.compiler.hf.yaml import to_yaml
from dsc.spec.checks import check, refused_name
from dsc.spec.errors import DscError, Finding, Position
from dsc.spec.model import NAME_PATTERN, ModelSpec
from dsc.spec.words import dotted, one_of, shown

LONGEST_NAME = 64


def import_config(config: Mapping[str, object], name: str) -> dict[str, object]:
    """A spec's sections in the schema's order. Raises a DscError with every key that the language cannot express."""
    return _import(language_model(config), name)[0]


def _import(model: LanguageModel, name: str) -> tuple[dict[str, object], list[str]]:
    """And what is to be told about it."""
    model_type = MODEL_TYPES[_type_name(model.config)]
    reader = ConfigReader(renamed(model.config, model_type.aliases), model.key)
    spec = {"name": name} | model_type.read(reader)
    reader.refuse_unknown()
    reader.raise_findings()
    return _validated(spec), reader.notes


def import_path(path: Path) -> str:
    """The text of a spec from a config.json, or from a folder that holds one; named after the file or the folder.

    Special tokens of a generation_config.json beside it go before those of the config, as in transformers. Raises a
    DscError where `dsc check` would refuse the spec.
    """
    file = path / "config.json" if path.is_dir() else path
    config = _parse(file)
    try:
        model = language_model(config)
        type_name = _type_name(model.config)
        model = replace(model, config={**model.config, **_generation_tokens(file)})
        origin = file.resolve().parent.name if file.name == "config.json" else file.stem
        spec, notes = _import(model, spec_name(origin, type_name))
        if findings := check(ModelSpec.model_validate(spec)):
            raise DscError(findings)
    except DscError as error:
        raise located(error, file) from None
    return to_yaml(spec, _comment(spec, type_name, model, notes))


def spec_name(origin: str, fallback: str) -> str:
    """The name of a spec from that of a file or folder: DeepSeek-V3 -> deepseek-v3."""
    parts = [re.sub(r"\.+", ".", part).strip(".") for part in re.split(r"[^a-z0-9.]+", origin.lower())]
    name = "-".join(part for part in parts if part)[:LONGEST_NAME].rstrip(".-")
    if not re.match(NAME_PATTERN, name):
        return fallback.replace("_", "-")
    return name if refused_name(name) is None else f"{name}-model"


def _comment(spec: Mapping[str, object], type_name: str, model: LanguageModel, notes: list[str]) -> str:
    lines = [f"Imported from a Hugging Face config.json of type {type_name}."]
    if model.left_out:
        lines.append(f"It is the language model inside {model.wrapper}; left out: {', '.join(model.left_out)}.")
    ffn = spec["ffn"]
    if isinstance(ffn, dict) and "moe" in ffn:
        lines.append("Such a file does not say how training spreads load over the experts: see router.balance.")
    return "\n".join(lines + notes)


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
            Finding(
                NOT_UNDERSTOOD,
                f"the config gives {dotted(item['loc'])} = {shown(item['input'])}: {item['msg']}",
                item["loc"],
            )
            for item in error.errors()
        ]
        raise DscError(findings) from None


def _generation_tokens(file: Path) -> dict[str, object]:
    """What is not null in a generation_config.json beside a config.json."""
    beside = file.with_name("generation_config.json")
    found = _parse(beside) if file.name == "config.json" and beside.is_file() else {}
    return {key: found[key] for key in KEYS if found.get(key) is not None}


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
    position = position or Position(str(file), 1, 1)
    return DscError([Finding(NOT_UNDERSTOOD, message, position=position)])
