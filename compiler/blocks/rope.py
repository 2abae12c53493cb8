"""The constants of the rotary embedding; the formulas are in templates/helpers/rotary_table_*."""

import math

from dsc.compiler.graph.constants import Constants
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling


def rope_constants(constants: Constants, rope: Rope, key: str, rotary_dim: int) -> str | None:
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
    text = f"{head_dim}**-0.5"
    if isinstance(rope.scaling, YarnScaling) and rope.scaling.mscale_all_dim and rope.scaling.factor > 1:
        all_dim = constants.number("YARN_MSCALE_ALL_DIM", rope.scaling.mscale_all_dim, f"{key}.scaling.mscale_all_dim")
        text += f" * (0.1 * {all_dim} * math.log(ROPE_FACTOR) + 1) ** 2"
    return constants.expression("ATTENTION_SCALE", text, "")


def _yarn(constants: Constants, theta: float, yarn: YarnScaling, key: str, rotary_dim: int) -> str | None:
    low, high = correction_range(theta, yarn, rotary_dim)
    constants.number("ROPE_FACTOR", float(yarn.factor), f"{key}.factor")
    constants.number("YARN_LOW", low, f"{key}: pairs up to it turn over beta_fast times and are kept")
    constants.number("YARN_HIGH", high, f"{key}: pairs from it turn under beta_slow times and are slowed")
    if amplitude(yarn) == 1.0:
        return None
    over = constants.number("YARN_MSCALE", yarn.mscale, f"{key}.mscale")
    under = constants.number("YARN_MSCALE_ALL_DIM", yarn.mscale_all_dim, f"{key}.mscale_all_dim")
    text = f"(0.1 * {over} * math.log(ROPE_FACTOR) + 1) / (0.1 * {under} * math.log(ROPE_FACTOR) + 1)"
    return constants.expression("ROPE_AMPLITUDE", text, "")


def _llama3(constants: Constants, llama3: Llama3Scaling, key: str) -> None:
    constants.number("ROPE_FACTOR", float(llama3.factor), f"{key}.factor")
    constants.number("ROPE_LOW_FREQ_FACTOR", float(llama3.low_freq_factor), f"{key}.low_freq_factor")
    constants.number("ROPE_HIGH_FREQ_FACTOR", float(llama3.high_freq_factor), f"{key}.high_freq_factor")
    original = llama3.original_max_position_embeddings
    constants.number("ROPE_ORIGINAL_LENGTH", original, f"{key}.original_max_position_embeddings")


def amplitude(yarn: YarnScaling) -> float:
    """YaRN's factor on cos and sin."""
    over, under = (0.1 * m * math.log(yarn.factor) + 1 for m in (yarn.mscale, yarn.mscale_all_dim))
    return over / under


def correction_range(theta: float, yarn: YarnScaling, rotary_dim: int) -> tuple[int, float]:
    """First and last pair of the ramp (YaRN, section 3.2), rounded outwards and kept inside the table."""

    def pair_of(turns: float) -> float:
        length = yarn.original_max_position_embeddings
        return rotary_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), rotary_dim - 1)
    return low, high if high != low else high + 0.001  # a ramp of no width would divide by zero
