"""Rotary embeddings in a config: rope_theta with rope_scaling, or transformers 5's rope_parameters."""

import math

from dsc.compiler.hf.reader import ConfigReader
from dsc.spec.rope import NoScaling, Rope, YarnScaling
from dsc.spec.words import one_of

_TYPES = ("default", "yarn", "llama3")  # and linear, where it stretches nothing
_WHOLE = "the language rotates the whole rotary part"


def read_rope(config: ConfigReader, layout: str, default_theta: float, context: int, mla: bool) -> dict[str, object]:
    """The spec's rope; `context` is max_position_embeddings. Latent attention alone scales the softmax too."""
    theta = config.number("rope_theta", default_theta)
    config.only("partial_rotary_factor", (1, None), _WHOLE)
    parameters = _parameters(config)
    if parameters is None:
        return {"layout": layout, "theta": theta}
    parameters.only("partial_rotary_factor", (1,), _WHOLE)
    rope: dict[str, object] = {"layout": layout, "theta": parameters.number("rope_theta", theta)}
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind not in (*_TYPES, "linear"):
        # What the other keys mean depends on the type.
        parameters.refuse("rope_type", f"the rope type {kind!r} is not supported", f"known are {one_of(_TYPES)}")
        return rope
    if kind == "yarn":
        rope["scaling"] = _read_yarn(parameters, context, mla)
    elif kind == "llama3":
        rope["scaling"] = _read_llama3(parameters, context)
    elif kind == "linear":
        parameters.only("factor", (1,), "a linear stretch is not supported; known are yarn and llama3")
    parameters.refuse_unknown()
    return rope


def write_rope(rope: Rope) -> dict[str, object]:
    """rope_theta and rope_scaling, which every version of transformers reads."""
    scaling = rope.scaling
    if isinstance(scaling, NoScaling):
        return {"rope_scaling": None, "rope_theta": rope.theta}
    fields: dict[str, object] = scaling.model_dump(exclude={"kind", "mscale", "mscale_all_dim"})
    if isinstance(scaling, YarnScaling):
        fields |= _write_magnitudes(scaling)
        fields["type"] = "yarn"  # the spelling of DeepSeek's own code; transformers reads both
    else:
        fields["rope_type"] = scaling.kind
    return {"rope_scaling": dict(sorted(fields.items())), "rope_theta": rope.theta}


def _parameters(config: ConfigReader) -> ConfigReader | None:
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    if old is not None and new is not None:
        config.refuse("rope_scaling", "rope_scaling and rope_parameters are two names of one key", "keep one of them")
    return old or new


def _read_llama3(parameters: ConfigReader, context: int) -> dict[str, object]:
    return {
        "kind": "llama3",
        "factor": parameters.number("factor"),
        "low_freq_factor": parameters.number("low_freq_factor"),
        "high_freq_factor": parameters.number("high_freq_factor"),
        "original_max_position_embeddings": parameters.integer("original_max_position_embeddings", context),
    }


def _read_yarn(parameters: ConfigReader, context: int, mla: bool) -> dict[str, object]:
    parameters.only("truncate", (True,), "the language rounds the ends of YaRN's ramp")
    original = parameters.integer("original_max_position_embeddings", context)
    factor = parameters.number("factor", null=context / max(original, 1))
    mscale, mscale_all_dim = _read_magnitudes(parameters, factor, mla)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": parameters.number("beta_fast", 32.0, null=32.0) or 32.0,  # transformers reads 0 as absent
        "beta_slow": parameters.number("beta_slow", 1.0, null=1.0) or 1.0,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }


def _read_magnitudes(parameters: ConfigReader, factor: float, mla: bool) -> tuple[float, float]:
    """mscale and mscale_all_dim that give the same cos, sin and softmax scale as transformers' defaulting.

    transformers multiplies cos and sin by attention_factor; without one by m(mscale) / m(mscale_all_dim), and where
    one of the two is absent or 0 by m(1). Latent attention multiplies the softmax scale by m(mscale_all_dim) ** 2.
    """
    mscale = parameters.number("mscale", 0.0, null=0.0)
    mscale_all_dim = parameters.number("mscale_all_dim", 0.0, null=0.0)
    softmax_dim = mscale_all_dim if mla else 0.0
    if not parameters.has("attention_factor"):
        if not (mscale and mscale_all_dim):
            mscale, mscale_all_dim = 1.0, 0.0
        if mscale_all_dim == softmax_dim:
            return mscale, softmax_dim
    attention_factor = parameters.number("attention_factor", _m(factor, mscale) / _m(factor, mscale_all_dim))
    magnitude = attention_factor * _m(factor, softmax_dim)
    if factor <= 1 or magnitude < 1:
        if magnitude != 1:
            message = f"cos and sin multiplied by {magnitude:g} cannot be expressed as an mscale of YaRN"
            parameters.refuse("attention_factor", message, "the language has m = 0.1 mscale ln(factor) + 1")
        return 0.0, softmax_dim
    # Rounded, to undo the noise of the logarithm.
    return round((magnitude - 1) / (0.1 * math.log(factor)), 12), softmax_dim


def _write_magnitudes(scaling: YarnScaling) -> dict[str, object]:
    """The inverse of reading: attention_factor only where transformers would derive another one."""
    mscale, mscale_all_dim = scaling.mscale, scaling.mscale_all_dim
    if mscale and mscale_all_dim:
        return {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    if mscale == 1 and not mscale_all_dim:
        return {}
    factor = _m(scaling.factor, mscale) / _m(scaling.factor, mscale_all_dim)
    magnitudes: dict[str, object] = {"attention_factor": factor}
    return magnitudes | {"mscale_all_dim": mscale_all_dim} if mscale_all_dim else magnitudes


def _m(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
