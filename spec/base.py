"""The base of every section of the language: no unknown keys, immutable, strictly typed."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One mapping of a spec file. Unknown keys, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# The upper bound keeps products of several sizes within what later arithmetic can handle.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]

# What a spec calls one of several kinds. One word: emitted names are made of several of them.
KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$", max_length=32)]
