"""The base of every section of the language: no unknown keys, immutable, strictly typed."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Section(BaseModel):
    """One mapping of a spec file. Unknown keys, wrong types, NaN and infinities are errors.

    The string below a key is its description in the JSON Schema. It is read from the source when a schema is asked for:
    pydantic's own option reads it whenever the language is imported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for owner in reversed(cls.__mro__[: cls.__mro__.index(Section)]):
            for name, text in _descriptions(owner):
                properties.get(name, {})["description"] = text
        return schema


def _descriptions(section: type) -> Iterator[tuple[str, str]]:
    """The attributes of a class below which a string stands, and the strings."""
    body = ast.parse(dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    for first, second in pairwise(body.body):
        match first, second:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


# The upper bound keeps products of several sizes within what later arithmetic can handle.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]

# One type for each role that a number has in the arithmetic of a model. What is computed from it, gradients included,
# stays inside the range of float32, and no published model comes near a bound.
Epsilon = Annotated[float, Field(ge=1e-20, le=1.0)]
"""Added to a mean square: eps ** -1.5, which backward of a norm has, is finite."""
Multiplier = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Of activations, or their limit."""
LossWeight = Annotated[float, Field(ge=1e-12, le=1e6)]
"""Of a term that training adds, or the rate of an update."""
Spread = Annotated[float, Field(ge=0.0, le=100.0)]
"""Standard deviation of weights, and multipliers of a magnitude that may be 0."""
Stretch = Annotated[float, Field(ge=1.0, le=1e6)]
"""How many times longer a context becomes."""
Turns = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Of a rotary pair in a context, as the bound of a band of frequencies."""
RotaryBase = Annotated[float, Field(gt=0.0, le=1e15)]

# What a spec calls one of several kinds. One word: emitted names are made of several of them.
KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$", max_length=32)]
