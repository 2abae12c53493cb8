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
