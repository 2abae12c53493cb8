"""The rotary tables of a model and their constants; the formulas are in templates/helpers/rotary_table_*."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.dim import Dim, Int, S
from dsc.compiler.graph.types import DType, TensorType
from dsc.spec.attention import Attention, MlaAttention
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling


@dataclass(frozen=True)
class Table:
    """What attentions of one rope and one rotary width share."""

    scope: Scope
    rope: Rope
    rotary_dim: Dim
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
        table = Table(scope, rope, widths[sharing[0]], rope_constants(scope, rope, width), own_layout)
        tables.update(dict.fromkeys(sharing, table))
    return tables


def rotary_dim(scope: Scope, spec: Attention) -> Dim:
    """How many components of a head are rotated."""
    if isinstance(spec, MlaAttention):
        return scope.dim("QK_ROPE_HEAD_DIM", spec.qk_rope_head_dim, "qk_rope_head_dim", "R")
    return scope.dim("HEAD_DIM", spec.head_dim, "head_dim", "N")


def rope_constants(scope: Scope, rope: Rope, rotary_dim: int) -> str | None:
    """Adds what the table needs. Returns the name of the factor on cos and sin, where there is one."""
    scope.number("ROPE_THETA", float(rope.theta), "rope.theta")
    match rope.scaling:
        case YarnScaling():
            return _yarn(scope, rope.theta, rope.scaling, rotary_dim)
        case Llama3Scaling():
            _llama3(scope, rope.scaling)
    return None


def softmax_scale(scope: Scope, table: Table, head_dim: Dim) -> str:
    """The name of 1 / sqrt(head dim), times YaRN's squared mscale where it has one (DeepSeek-V2, section 3.1.4)."""
    text = f"{head_dim}**-0.5"
    scaling = table.rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim and scaling.factor > 1:
        all_dim = table.scope.number("YARN_MSCALE_ALL_DIM", scaling.mscale_all_dim, "rope.scaling.mscale_all_dim")
        text += f" * (0.1 * {all_dim} * math.log({table.scope.prefix}ROPE_FACTOR) + 1) ** 2"
    return scope.expression("ATTENTION_SCALE", text)


def _yarn(scope: Scope, theta: float, yarn: YarnScaling, rotary_dim: int) -> str | None:
    low, high = correction_range(theta, yarn, rotary_dim)
    factor = scope.number("ROPE_FACTOR", float(yarn.factor), "rope.scaling.factor")
    scope.number("YARN_LOW", low, "rope.scaling: pairs up to it turn over beta_fast times and are kept")
    scope.number("YARN_HIGH", high, "rope.scaling: pairs from it turn under beta_slow times and are slowed")
    if amplitude(yarn) == 1.0:
        return None
    over = scope.number("YARN_MSCALE", yarn.mscale, "rope.scaling.mscale")
    under = scope.number("YARN_MSCALE_ALL_DIM", yarn.mscale_all_dim, "rope.scaling.mscale_all_dim")
    text = f"(0.1 * {over} * math.log({factor}) + 1) / (0.1 * {under} * math.log({factor}) + 1)"
    return scope.expression("ROPE_AMPLITUDE", text)


def _llama3(scope: Scope, llama3: Llama3Scaling) -> None:
    scope.number("ROPE_FACTOR", float(llama3.factor), "rope.scaling.factor")
    scope.number("ROPE_LOW_FREQ_FACTOR", float(llama3.low_freq_factor), "rope.scaling.low_freq_factor")
    scope.number("ROPE_HIGH_FREQ_FACTOR", float(llama3.high_freq_factor), "rope.scaling.high_freq_factor")
    original = llama3.original_max_position_embeddings
    scope.number("ROPE_ORIGINAL_LENGTH", original, "rope.scaling.original_max_position_embeddings")


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
