"""As much of a spec as could be read, so that rules across its keys are checked beside the errors of the rest.

The schema's own validator, made lenient: a value that is missing or wrong leaves its section without that attribute.
A rule that reads the attribute stops there.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import SchemaValidator, core_schema

from dsc.spec.base import Section
from dsc.spec.yaml import UNREAD

S = TypeVar("S", bound=Section)
T = TypeVar("T")

CONFIG = core_schema.CoreConfig(strict=True, allow_inf_nan=False, extra_fields_behavior="allow")


def readable_part(section: type[S], values: object) -> S | None:
    """What can be read of a mapping that the schema refused; None for what is no mapping."""
    if not isinstance(values, dict):  # of which nothing was validated: pydantic may not have built its schema yet
        return None
    try:
        part: S = SchemaValidator(_lenient(section.__pydantic_core_schema__), CONFIG).validate_python(values)
    except ValidationError:
        return None
    return part


def until_unread(found: Iterator[T]) -> Iterator[T]:
    """What a rule finds before it reads an attribute that is missing because its value was refused."""
    try:
        yield from found
    except AttributeError as error:
        if not (isinstance(error.obj, Section) and error.name in type(error.obj).model_fields):
            raise


def _lenient(schema: Any) -> Any:
    """A schema of pydantic_core in which fields may be missing or wrong, and sections have keys that are unknown."""
    if isinstance(schema, list | tuple):
        return type(schema)(_lenient(inner) for inner in schema)
    if not isinstance(schema, dict):
        return schema
    made = {name: _lenient(inner) for name, inner in schema.items()}
    if made.get("type") == "model-field":
        field = core_schema.no_info_wrap_validator_function(_or_unread, made["schema"])
        return core_schema.model_field(core_schema.with_default_schema(field, default=UNREAD))
    if "extras_schema" in made:
        made["extras_schema"] = core_schema.no_info_wrap_validator_function(_or_unread, made["extras_schema"])
    if made.get("type") == "model":
        make = partial(_section, made["cls"])
        return core_schema.no_info_after_validator_function(make, made["schema"], ref=made.get("ref"))
    return made


def _or_unread(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return UNREAD


def _section(section: type[S], read: tuple[Mapping[str, Any], Mapping[str, Any] | None, set[str]]) -> S:
    """From the values of its keys, unknown keys, and the names of those that were given.

    Beside an unknown key, what is left out may be what was meant by it.
    """
    values, unknown, given = read
    if section.model_config.get("extra") == "allow":  # names of the user's choice
        values = {**values, **(unknown or {})}
        unknown = {name: value for name, value in (unknown or {}).items() if value is UNREAD}
    kept = {name: value for name, value in values.items() if value is not UNREAD}
    made = section.model_construct(given, **kept)
    for name in (section.model_fields.keys() if unknown else given) - kept.keys():
        vars(made).pop(name, None)
    return made
