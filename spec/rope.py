"""Rotary position embedding: how pairs are laid out, their frequencies, and scaling to longer contexts."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, RotaryBase, Section, Spread, Stretch, Turns


class NoScaling(Section):
    """Plain rotary frequencies, theta ** (-2 i / dim)."""

    kind: Literal["none"] = "none"


class YarnScaling(Section):
    """YaRN (arXiv 2309.00071): interpolate low frequencies, keep high ones, with a ramp in between.

    cos and sin are multiplied by m(mscale) / m(mscale_all_dim) and the softmax scale by m(mscale_all_dim) ** 2,
    where m(s) = 0.1 s ln(factor) + 1.
    """

    kind: Literal["yarn"]
    factor: Stretch
    """How many times longer than the original context."""
    original_max_position_embeddings: Count
    """Context length before the stretch, tokens."""
    beta_fast: Turns = 32.0
    """Frequencies that turn more often than this in the original context are kept."""
    beta_slow: Turns = 1.0
    """Frequencies that turn less often than this are divided by the factor."""
    mscale: Spread = 1.0
    """Of cos and sin: they are multiplied by m(mscale) / m(mscale_all_dim)."""
    mscale_all_dim: Spread = 0.0
    """Of the softmax scale, which is multiplied by m(mscale_all_dim) ** 2; 0 leaves it as it is."""


class Llama3Scaling(Section):
    """Llama 3.1's scaling: by wavelength, with a smooth band between the two bounds."""

    kind: Literal["llama3"]
    factor: Stretch
    """How many times longer than the original context."""
    low_freq_factor: Turns
    """Wavelengths longer than the original context / this are stretched by the factor."""
    high_freq_factor: Turns
    """Wavelengths shorter than the original context / this are kept."""
    original_max_position_embeddings: Count
    """Context length before scaling, tokens."""


class Rope(Section):
    layout: Literal["interleaved", "half"]
    """Which components form a pair: (0, 1), (2, 3), ... or (0, dim / 2), (1, dim / 2 + 1), ..."""
    theta: RotaryBase = 10000.0
    """Base of the frequencies: pair i turns by theta ** (-2 i / dim) per position."""
    scaling: Annotated[NoScaling | YarnScaling | Llama3Scaling, Field(discriminator="kind")] = NoScaling()
    """How frequencies are scaled to a longer context."""
