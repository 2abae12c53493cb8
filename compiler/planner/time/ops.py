"""What every op asks of a GPU, read off the graph: FLOPs, bytes and casts, as polynomials in B and S.

Made once for each kind of part (a layer, the head, ...); what a layout makes of them is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dsc.compiler.graph.block import Node
from dsc.compiler.graph.dim import Axis, B, Dim, Int, S, total
from dsc.compiler.graph.op import OpClass, Parameter
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.graph.types import DType, TensorType, ValueType
from dsc.compiler.ops.fused.fp8 import Fp8Linears
from dsc.compiler.planner.machine.calibration import KernelClass
from dsc.compiler.planner.parts.parts import Part
from dsc.compiler.planner.parts.recompute import again, made_again
from dsc.compiler.planner.parts.shard import has_row_for_each_expert
from dsc.compiler.planner.time.overlap import OtherEngines
from dsc.compiler.planner.time.terms import Terms, terms_of
from dsc.spec.placement import RECOMPUTE

FLOATS = (DType.BF16, DType.FP32, DType.FP8)
# Bytes moved per element cast to FP8 on its own: bfloat16 read, FP8 and its share of a float32 scale per 128 written.
CAST = 2 + 1 + 4 / 128
# The same for a transposed copy of what FP8 already holds.
TRANSPOSE = 2 * (1 + 4 / 128)
# Bytes moved per element of a weight to make its codes: forward, and for the input's gradient with the same transposed.
CODES = (CAST, CAST + TRANSPOSE / 2)
# SwiGLU of other engines' experts runs again whatever is chosen: their kernel keeps gate and up alone.
ALWAYS = "always"
SAMPLE = {B.name: 1, S.name: 4096}  # where it is decided which of two sizes is the smaller


class Casts(NamedTuple):
    """Bytes that a product moves to quantize what it reads to FP8, in kernels of its own."""

    forward: Terms = Terms()
    input_gradient: Terms = Terms()
    weight_gradient: Terms = Terms()
    weights: tuple[float, float] = (0.0, 0.0)
    """Of the weights: forward, and for the input's gradient."""
    again: Terms = Terms()
    """What is cast beside that where the input is made again and the product is not."""


@dataclass(frozen=True)
class OpCost:
    """What one op asks of a GPU for a micro-batch. Bytes are of activations, weights count apart."""

    name: str
    """Path of the parameter, or of the module and the op's kind."""
    kernel_class: KernelClass
    """Of forward and of the input's gradient."""
    weight_class: KernelClass
    """Of the weights' gradient."""
    weight_axes: frozenset[Axis]
    """Of the shapes of its weights."""
    routed: bool
    """Its weights are those of routed experts."""
    recompute: tuple[str, ...]
    """Members of layout.RECOMPUTE, or ALWAYS, that run it again in backward."""
    recast: tuple[str, ...]
    """Those that make again what it is the first to cast to FP8."""
    unless: tuple[str, ...]
    """Those beside which that is not cast anew: where a product of the package runs again, it casts as it does."""
    flops: Terms
    backward_flops: Terms
    forward_bytes: Terms
    backward_bytes: Terms
    """Of gradients read and written, and of what was saved for them."""
    weights: int
    """Elements of the matrices that it multiplies by."""
    weight_bytes: int
    """Bytes of one such element."""
    casts: Casts
    waits: bool
    """The host waits for its result."""
    of_whole: bool
    """It runs for whole sequences on every rank that shares them."""
    of_rows: bool
    """It moves rows of experts as wide as tokens are, and does nothing else."""
    sent_bytes: tuple[Terms, Terms] | None
    """Of attention: what context parallelism gathers, by heads, and for all heads alike. None of other ops."""


def op_costs(parts: Iterable[Part], others: OtherEngines | None = None) -> dict[str, tuple[OpCost, ...]]:
    """The ops of each kind of part, in order, as the package runs them or `others` do."""
    found: dict[str, tuple[OpCost, ...]] = {}
    for part in parts:
        if part.kind not in found:
            found[part.kind] = tuple(_op_costs(part, others))
    return found


def _op_costs(part: Part, others: OtherEngines | None) -> Iterator[OpCost]:
    theirs = others.fp8_products if others else frozenset()
    cast: set[Storage] = set()
    steps = part.steps
    runs = {choice: again(steps, choice, part.layer) for choice in RECOMPUTE}
    made = {choice: made_again(steps, choice, part.layer) for choice in RECOMPUTE}
    for index, step in enumerate(steps):
        views = all(storage is None or storage in step.inputs for storage in step.outputs)
        if (views and not step.node.op.waits) or step.node.op.op_class is OpClass.EXCHANGE:
            continue
        kernel_class = class_of(step, theirs)
        recompute = tuple(choice for choice in RECOMPUTE if index in runs[choice])
        if others and step.node.op.recompute == "swiglu" and _is_expert_row(step):
            recompute = (*recompute, ALWAYS)
        source = step.inputs[0] if kernel_class in CASTING else None
        casts_first = source is not None and source not in cast
        if source is not None:
            cast.add(source)
        own = bool(step.node.op.in_fp8)
        recast = tuple(choice for choice in RECOMPUTE if source in made[choice]) if casts_first or own else ()
        anew = recast, recompute if own else ()
        sent = part.whole.sent if kernel_class == "attention" else ()
        yield _op_cost(step, kernel_class, casts_first, recompute, anew, index in part.whole.steps, sent)


@lru_cache(maxsize=4096)  # of a graph that is planned for several engines
def _op_cost(
    step: Step,
    kernel_class: KernelClass,
    casts_first: bool,
    recompute: tuple[str, ...],
    anew: tuple[tuple[str, ...], tuple[str, ...]],
    of_whole: bool,
    sent: tuple[Storage, ...],
) -> OpCost:
    node, op, sizes = step.node, step.node.op, step.sizes
    parameters = op.parameters()
    matrices = [parameter.substitute(sizes) for parameter in parameters if len(parameter.type.shape) > 1]
    counts = op.op_class not in (OpClass.MEMORY, OpClass.LOOKUP)
    weights = sum(matrix.type.numel.value() for matrix in matrices)
    flops = node.flops().substitute(sizes) if counts else Int(0)
    backward = op.backward_flops(node.input_types, node.output_types).substitute(sizes) if counts else Int(0)
    inputs, outputs = _sizes(node.input_types, step.inputs, sizes), _sizes(node.output_types, step.outputs, sizes)
    read, backward_bytes = _traffic(step, inputs, outputs)
    multiplies = op.op_class in (OpClass.PRODUCT, OpClass.GROUPED_PRODUCT)
    return OpCost(
        name=step.path + (parameters[0].name if parameters else op.kind),
        kernel_class=kernel_class,
        weight_class="gemm" if op.in_fp8 and "weight_gradient" not in op.in_fp8 else kernel_class,
        weight_axes=_axes(matrices),
        routed=any(matrix.is_routed for matrix in matrices),
        recompute=recompute,
        recast=anew[0],
        unless=anew[1],
        flops=terms_of(flops),
        backward_flops=terms_of(backward),
        forward_bytes=terms_of(read + total([size for size, _ in outputs])),
        backward_bytes=terms_of(backward_bytes),
        weights=weights if multiplies else 0,
        weight_bytes=1 if kernel_class in CASTING else matrices[0].type.dtype.bytes if matrices else 0,
        waits=step.node.op.waits,
        of_whole=of_whole,
        of_rows=kernel_class == "memory" and _moves_expert_rows(step),
        sent_bytes=_sent(sent) if sent else None,
        casts=_own_casts(step, weights) if op.in_fp8 else _their_casts(step, kernel_class, casts_first),
    )


def by_kept_codes(op: OpCost) -> OpCost:
    """The op where its weights' codes are there already."""
    return replace(op, casts=op.casts._replace(weights=(0.0, 0.0))) if any(op.casts.weights) else op


def _own_casts(step: Step, weights: int) -> Casts:
    """As the kernels that the package has do them: rows and columns in one pass, weights in every micro-batch."""
    node = step.node
    forward, backward = (one.substitute(step.sizes) for one in _cast_bytes(node))
    again = Terms()
    if isinstance(node.op, Fp8Linears) and node.op.saves_codes:
        both = total([*_cast_bytes(replace(node, op=node.op.encoding_again()))]).substitute(step.sizes)
        again = terms_of(both - forward - backward)
    return Casts(terms_of(forward), terms_of(backward), weights=(weights * CODES[0], weights * CODES[1]), again=again)


def _cast_bytes(node: Node) -> tuple[Dim, Dim]:
    return node.op.cast_bytes(node.input_types, node.output_types)


def _their_casts(step: Step, kernel_class: KernelClass, first: bool) -> Casts:
    """As DeepSeek's trace has them: a cast, and a transposed copy of what was cast, each a kernel of its own."""
    if kernel_class not in CASTING:
        return Casts()
    given = terms_of(_elements(step.node.input_types[0], step.sizes) if first else Int(0))
    result = terms_of(_elements(step.node.output_types[0], step.sizes))
    return Casts(
        given.times(CAST),
        result.times(CAST),
        Terms((*given.times(TRANSPOSE).terms, *result.times(TRANSPOSE).terms)),
        again=given.times(CAST - TRANSPOSE),  # codes along the tokens, of wide numbers and not of codes along features
    )


def _traffic(step: Step, inputs: list[tuple[Dim, bool]], outputs: list[tuple[Dim, bool]]) -> tuple[Dim, Dim]:
    """Bytes of activations that forward reads, and that backward moves: gradients and what was saved for them."""
    looks_up = step.node.op.op_class is OpClass.LOOKUP
    read = total([size for size, _ in (outputs if looks_up else inputs)])
    gradients = [size for size, is_float in (*inputs, *outputs) if is_float]
    saved = total([storage.type.bytes for storage in dict.fromkeys(step.saved)])
    reached = any(is_float for _, is_float in outputs) and (looks_up or any(is_float for _, is_float in inputs))
    return read, total(gradients) + saved if reached else Int(0)


CASTING: tuple[KernelClass, ...] = ("fp8_gemm", "fp8_grouped")
"""Kernels whose operands are cast to FP8 first."""


def class_of(step: Step, theirs: AbstractSet[str] = frozenset()) -> KernelClass:
    """How an op is limited: a product is FP8 where it says so itself, of float32 where its rows are."""
    op = step.node.op
    match op.op_class:
        case OpClass.MEMORY | OpClass.LOOKUP | OpClass.EXCHANGE:
            return "memory"
        case OpClass.ATTENTION:
            return "attention"
    if any(isinstance(t, TensorType) and t.shape and t.dtype is DType.FP32 for t in step.node.output_types):
        return "fp32_gemm"
    if op.in_fp8 or any(one.product in theirs for one in op.holders()):
        return "fp8_grouped" if op.op_class is OpClass.GROUPED_PRODUCT else "fp8_gemm"
    return "gemm"


def _is_expert_row(step: Step) -> bool:
    result = step.outputs[0]
    return result is not None and has_row_for_each_expert(result.type)


def _moves_expert_rows(step: Step) -> bool:
    types = [one.type for one in (*step.inputs, *step.outputs) if one is not None]
    rows = any(has_row_for_each_expert(type) for type in types if type.shape)
    return rows and not any(Axis.EXPERT_WIDTH in type.axes for type in types)


def _axes(matrices: Iterable[Parameter]) -> frozenset[Axis]:
    return frozenset[Axis]().union(*(matrix.type.axes for matrix in matrices))


def _sizes(
    types: tuple[ValueType, ...], storages: tuple[Storage | None, ...], sizes: Mapping[str, Dim]
) -> list[tuple[Dim, bool]]:
    """(bytes, whether a gradient flows there) of tensors; one that is expanded is no larger than its memory."""
    found = []
    for type, storage in zip(types, storages, strict=True):
        if isinstance(type, TensorType) and storage is not None:
            own, memory = type.bytes.substitute(sizes), storage.type.bytes
            smaller = memory if memory.value(SAMPLE) < own.value(SAMPLE) else own
            found.append((smaller, type.dtype in FLOATS))
    return found


def _sent(rows: tuple[Storage, ...]) -> tuple[Terms, Terms]:
    """Bytes of the rows that tensor parallelism divides, and of those that it does not."""
    by_heads = [one.type.bytes for one in rows if Axis.HEADS in one.type.axes]
    alike = [one.type.bytes for one in rows if Axis.HEADS not in one.type.axes]
    return terms_of(total(by_heads)), terms_of(total(alike))


def _elements(type: ValueType, sizes: Mapping[str, Dim]) -> Dim:
    assert isinstance(type, TensorType)
    return type.numel.substitute(sizes)
