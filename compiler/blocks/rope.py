"""The constants of the rotary embedding; the formulas are in templates/helpers/rotary_table_*."""

import math

from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Symbol
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling


def rope_constants(constants: Constants, rope: Rope, key: str, rotary_dim: Symbol) -> str | None:
    """Adds what the table needs. Returns the name of the factor on cos and sin, where there is one."""
    constants.number("ROPE_THETA", float(rope.theta), f"{key}.theta")
    match rope.scaling:
        case YarnScaling():
            return _yarn(constants, rope.theta, rope.scaling, f"{key}.scaling", rotary_dim)
        case Llama3Scaling():
            _llama3(constants, rope.scaling, f"{key}.scaling")
    return None


def softmax_scale(constants: Constants, rope: Rope, key: str, head_dim: str) -> str:
    """The name of 1 / sqrt(head dim), times YaRN's squared mscale where it has one (DeepSeek-V2, section 3.1.4)."""
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling) or not scaling.mscale_all_dim or scaling.factor == 1:
        return constants.expression("ATTENTION_SCALE", "{0}**-0.5", head_dim)
    all_dim = constants.number("YARN_MSCALE_ALL_DIM", scaling.mscale_all_dim, f"{key}.scaling.mscale_all_dim")
    text = "{0}**-0.5 * (0.1 * {1} * math.log({2}) + 1) ** 2"
    return constants.expression("ATTENTION_SCALE", text, head_dim, all_dim, "ROPE_FACTOR")


def _yarn(constants: Constants, theta: float, yarn: YarnScaling, key: str, rotary_dim: Symbol) -> str | None:
    constants.number("ROPE_FACTOR", float(yarn.factor), f"{key}.factor")
    _ramp(constants, theta, yarn, key, rotary_dim)
    if amplitude(yarn) == 1.0:
        return None
    over = constants.number("YARN_MSCALE", yarn.mscale, f"{key}.mscale")
    under = constants.number("YARN_MSCALE_ALL_DIM", yarn.mscale_all_dim, f"{key}.mscale_all_dim")
    text = "(0.1 * {0} * math.log({2}) + 1) / (0.1 * {1} * math.log({2}) + 1)"
    return constants.expression("ROPE_AMPLITUDE", text, over, under, "ROPE_FACTOR")


def _ramp(constants: Constants, theta: float, yarn: YarnScaling, key: str, rotary_dim: Symbol) -> None:
    """First and last pair of the ramp (YaRN, section 3.2), rounded outwards and kept inside the table."""
    length = _original_length(constants, yarn, key)
    pair = "{0} / 2 * math.log({1} / (2 * math.pi * {2}), {3})"  # rotates {2} times over the original context
    for name, beta, turns in (("FAST", "beta_fast", yarn.beta_fast), ("SLOW", "beta_slow", yarn.beta_slow)):
        often = constants.number(f"YARN_BETA_{name}", turns, f"{key}.{beta}")
        constants.expression(f"YARN_{name}_PAIR", pair, rotary_dim.name, length, often, "ROPE_THETA")
    constants.expression("YARN_LOW", "max(math.floor({0}), 0)", "YARN_FAST_PAIR")
    low, high = _ends(theta, yarn, rotary_dim.value())
    width = " + 0.001" if low == high else ""  # a ramp of no width would divide by zero
    constants.expression("YARN_HIGH", "min(math.ceil({0}), {1} - 1)" + width, "YARN_SLOW_PAIR", rotary_dim.name)


def _llama3(constants: Constants, llama3: Llama3Scaling, key: str) -> None:
    constants.number("ROPE_FACTOR", float(llama3.factor), f"{key}.factor")
    constants.number("ROPE_LOW_FREQ_FACTOR", float(llama3.low_freq_factor), f"{key}.low_freq_factor")
    constants.number("ROPE_HIGH_FREQ_FACTOR", float(llama3.high_freq_factor), f"{key}.high_freq_factor")
    _original_length(constants, llama3, key)


def _original_length(constants: Constants, scaling: YarnScaling | Llama3Scaling, key: str) -> str:
    length = scaling.original_max_position_embeddings
    return constants.number("ROPE_ORIGINAL_LENGTH", length, f"{key}.original_max_position_embeddings")


def amplitude(yarn: YarnScaling) -> float:
    """YaRN's factor on cos and sin."""
    over, under = (0.1 * m * math.log(yarn.factor) + 1 for m in (yarn.mscale, yarn.mscale_all_dim))
    return over / under


def _ends(theta: float, yarn: YarnScaling, rotary_dim: int) -> tuple[int, int]:
    """The figures of YARN_LOW and YARN_HIGH."""
    length = yarn.original_max_position_embeddings
    fast, slow = (
        rotary_dim / 2 * math.log(length / (2 * math.pi * turns), theta) for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    return max(math.floor(fast), 0), min(math.ceil(slow), rotary_dim - 1)
