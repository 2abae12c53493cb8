"""The rotary tables of a model and their constants; the formulas are in templates/helpers/rotary_table_*."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.dim import Int, S, Symbol
from dsc.compiler.graph.types import DType, TensorType
from dsc.spec.attention import Attention, MlaAttention
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling


@dataclass(frozen=True)
class Table:
    """What attentions of one rope and one rotary width share."""

    scope: Scope
    rope: Rope
    rotary_dim: Symbol
    amplitude: str | None
    """The factor on cos and sin, where there is one."""
    own_layout: bool
    """Whether the model has another table of another layout."""

    @property
    def prefix(self) -> str:
        """Before the names of its variable and its function: window_, or nothing."""
        return self.scope.prefix.lower()

    @property
    def layout_prefix(self) -> str:
        return self.prefix if self.own_layout else ""

    @property
    def name(self) -> str:
        return f"{self.prefix}rope"

    @property
    def type(self) -> TensorType:
        """[2, S, R]."""
        return TensorType((Int(2), S, self.rotary_dim), DType.FP32)


def rope_tables(attentions: Mapping[str, tuple[Scope, Attention]]) -> dict[str, Table]:
    """The table of each attention. Where the model has one table only, its names need no prefix."""
    widths = {name: rotary_dim(scope, spec) for name, (scope, spec) in attentions.items()}
    distinct: list[tuple[Rope, int]] = []
    for name, (_, spec) in attentions.items():
        if (spec.rope, widths[name].value()) not in distinct:
            distinct.append((spec.rope, widths[name].value()))
    tables: dict[str, Table] = {}
    for rope, width in distinct:
        sharing = [n for n, (_, spec) in attentions.items() if (spec.rope, widths[n].value()) == (rope, width)]
        of_first, _ = attentions[sharing[0]]
        scope = Scope(of_first.constants, of_first.name, of_first.key, siblings=len(distinct) > 1)
        own_layout = any(other.layout != rope.layout for other, _ in distinct)
        turned = widths[sharing[0]]
        table = Table(scope, rope, turned, rope_constants(scope, rope, turned), own_layout)
        tables.update(dict.fromkeys(sharing, table))
    return tables


def rotary_dim(scope: Scope, spec: Attention) -> Symbol:
    """How many components of a head are rotated."""
    if isinstance(spec, MlaAttention):
        return scope.dim("QK_ROPE_HEAD_DIM", spec.qk_rope_head_dim, "qk_rope_head_dim", "R")
    return scope.dim("HEAD_DIM", spec.head_dim, "head_dim", "N")


def rope_constants(scope: Scope, rope: Rope, rotary_dim: Symbol) -> str | None:
    """Adds what the table needs. Returns the name of the factor on cos and sin, where there is one."""
    theta = scope.number("ROPE_THETA", float(rope.theta), "rope.theta")
    match rope.scaling:
        case YarnScaling():
            return _yarn(scope, theta, rope, rope.scaling, rotary_dim)
        case Llama3Scaling():
            _llama3(scope, rope.scaling)
    return None


def softmax_scale(scope: Scope, table: Table, head_dim: Symbol) -> str:
    """The name of 1 / sqrt(head dim), times YaRN's squared mscale where it has one (DeepSeek-V2, section 3.1.4)."""
    scaling = table.rope.scaling
    if not isinstance(scaling, YarnScaling) or not scaling.mscale_all_dim or scaling.factor == 1:
        return scope.expression("ATTENTION_SCALE", "{0}**-0.5", head_dim.name)
    all_dim = table.scope.number("YARN_MSCALE_ALL_DIM", scaling.mscale_all_dim, "rope.scaling.mscale_all_dim")
    factor = table.scope.number("ROPE_FACTOR", float(scaling.factor), "rope.scaling.factor")
    text = "{0}**-0.5 * (0.1 * {1} * math.log({2}) + 1) ** 2"
    return scope.expression("ATTENTION_SCALE", text, head_dim.name, all_dim, factor)


def _yarn(scope: Scope, theta: str, rope: Rope, yarn: YarnScaling, rotary_dim: Symbol) -> str | None:
    factor = scope.number("ROPE_FACTOR", float(yarn.factor), "rope.scaling.factor")
    _ramp(scope, theta, rope, yarn, rotary_dim)
    if amplitude(yarn) == 1.0:
        return None
    over = scope.number("YARN_MSCALE", yarn.mscale, "rope.scaling.mscale")
    under = scope.number("YARN_MSCALE_ALL_DIM", yarn.mscale_all_dim, "rope.scaling.mscale_all_dim")
    text = "(0.1 * {0} * math.log({2}) + 1) / (0.1 * {1} * math.log({2}) + 1)"
    return scope.expression("ROPE_AMPLITUDE", text, over, under, factor)


def _ramp(scope: Scope, theta: str, rope: Rope, yarn: YarnScaling, rotary_dim: Symbol) -> None:
    """First and last pair of the ramp (YaRN, section 3.2), rounded outwards and kept inside the table."""
    length = _original_length(scope, yarn)
    pair = "{0} / 2 * math.log({1} / (2 * math.pi * {2}), {3})"  # rotates {2} times over the original context
    ends = []
    for name, beta, turns in (("FAST", "beta_fast", yarn.beta_fast), ("SLOW", "beta_slow", yarn.beta_slow)):
        often = scope.number(f"YARN_BETA_{name}", turns, f"rope.scaling.{beta}")
        ends.append(scope.expression(f"YARN_{name}_PAIR", pair, rotary_dim.name, length, often, theta))
    scope.expression("YARN_LOW", "max(math.floor({0}), 0)", ends[0])
    low, high = _ends(rope.theta, yarn, rotary_dim.value())
    width = " + 0.001" if low == high else ""  # a ramp of no width would divide by zero
    scope.expression("YARN_HIGH", "min(math.ceil({0}), {1} - 1)" + width, ends[1], rotary_dim.name)


def _llama3(scope: Scope, llama3: Llama3Scaling) -> None:
    scope.number("ROPE_FACTOR", float(llama3.factor), "rope.scaling.factor")
    scope.number("ROPE_LOW_FREQ_FACTOR", float(llama3.low_freq_factor), "rope.scaling.low_freq_factor")
    scope.number("ROPE_HIGH_FREQ_FACTOR", float(llama3.high_freq_factor), "rope.scaling.high_freq_factor")
    _original_length(scope, llama3)


def _original_length(scope: Scope, scaling: YarnScaling | Llama3Scaling) -> str:
    length = scaling.original_max_position_embeddings
    return scope.number("ROPE_ORIGINAL_LENGTH", length, "rope.scaling.original_max_position_embeddings")


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
