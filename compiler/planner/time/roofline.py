"""Seconds of ops: max(FLOP / (peak * efficiency), bytes / (bandwidth * efficiency), floor), read off the graph.

Costs of the ops of each kind of part (a layer, the head, ...) are polynomials in B and S, made once; what a layout
makes of them is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, get_args

from dsc.compiler.graph.dim import Atom, Dim, Int, total
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.graph.types import DType, TensorType, ValueType
from dsc.compiler.planner.layout.layout import RECOMPUTE
from dsc.compiler.planner.machine.calibration import Constant, OpClass
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import Part
from dsc.compiler.planner.parts.recompute import again, made_again
from dsc.compiler.planner.parts.shard import CHOSEN, is_routed, sizes_in_dim

CLASSES: tuple[OpClass, ...] = get_args(OpClass)
POSITION = {op_class: position for position, op_class in enumerate(CLASSES)}

# Modules of a layer whose products take part in FP8 (spec.precision); the router within them works in float32.
FP8_MODULES = ("self_attn", "mlp")
FLOATS = (DType.BF16, DType.FP32, DType.FP8)
# SwiGLU of routed experts runs again whatever is chosen: their kernel keeps gate and up alone (ops/fused/experts.py).
ALWAYS = "always"
SAMPLE = {"B": 1, "S": 4096}  # where it is decided which of two sizes is the smaller


class Terms(NamedTuple):
    """A polynomial: the sum of coefficient * B^b * S^s, times the formulas that some terms have beside them."""

    terms: tuple[tuple[float, int, int, tuple[Dim, ...]], ...] = ()

    def at(self, batch: int, length: int) -> float:
        sizes = {"B": batch, "S": length}
        return sum(
            coefficient * float(batch**b * length**s * prod(formula.value(sizes) for formula in formulas))
            for coefficient, b, s, formulas in self.terms
        )


@dataclass(frozen=True)
class OpCost:
    """What one op asks of a GPU for a micro-batch. Bytes are of activations, weights count apart."""

    name: str
    """Path of the parameter, or of the module and the op's kind."""
    op_class: OpClass
    routed: bool
    """Its weights are those of routed experts."""
    recompute: tuple[str, ...]
    """Members of layout.RECOMPUTE, or ALWAYS, that run it again in backward."""
    recast: tuple[str, ...]
    """Those that make again what it is the first to cast to FP8."""
    flops: Terms
    backward_flops: Terms
    forward_bytes: Terms
    backward_bytes: Terms
    """Of gradients read and written, and of what was saved for them."""
    weights: int
    """Elements of the matrices that it multiplies by."""
    weight_bytes: int
    """Bytes of one such element."""
    input_elements: Terms
    """Of the input, where this op is the first to cast it to FP8."""
    output_elements: Terms
    """Of the result, whose gradient is cast to FP8."""
    key_value_bytes: Terms
    """Of attention: what context parallelism passes around."""


def op_costs(parts: Iterable[Part], fp8: bool) -> dict[str, tuple[OpCost, ...]]:
    """The ops of each kind of part, in order. `fp8` says whether the spec's linear layers multiply in FP8."""
    found: dict[str, tuple[OpCost, ...]] = {}
    for part in parts:
        if part.kind not in found:
            found[part.kind] = tuple(_op_costs(part.steps, fp8))
    return found


def _op_costs(steps: tuple[Step, ...], fp8: bool) -> Iterator[OpCost]:
    cast: set[Storage] = set()
    runs = {choice: again(steps, choice) for choice in RECOMPUTE}
    made = {choice: made_again(steps, choice) for choice in RECOMPUTE}
    for index, step in enumerate(steps):
        if any(storage is not None and storage not in step.inputs for storage in step.outputs):  # else a view
            recompute = tuple(choice for choice in RECOMPUTE if index in runs[choice])
            recast = tuple(choice for choice in RECOMPUTE if step.inputs[0] in made[choice])
            if step.node.op.recompute == "swiglu" and _is_expert_row(step):
                recompute = (*recompute, ALWAYS)
            yield _op_cost(step, fp8, cast, recompute, recast)


def _op_cost(step: Step, fp8: bool, cast: set[Storage], recompute: tuple[str, ...], recast: tuple[str, ...]) -> OpCost:
    node, op, sizes = step.node, step.node.op, step.sizes
    parameters = op.parameters()
    matrices = [parameter.substitute(sizes) for parameter in parameters if len(parameter.type.shape) > 1]
    is_norm = bool(parameters) and not matrices
    flops = Int(0) if is_norm else node.flops().substitute(sizes)
    backward = Int(0) if is_norm else op.backward_flops(node.input_types, node.output_types).substitute(sizes)
    op_class = _class_of(step, flops, any(map(is_routed, matrices)), fp8)
    is_product = op_class not in ("attention", "memory")
    casts = op_class in ("fp8_gemm", "fp8_grouped")
    source = step.inputs[0] if casts else None
    first = source is not None and source not in cast
    if source is not None:
        cast.add(source)
    inputs, outputs = _sizes(node.input_types, step.inputs, sizes), _sizes(node.output_types, step.outputs, sizes)
    looks_up = bool(matrices) and not is_product
    read = total([result for result, _ in outputs]) if looks_up else total([size for size, _ in inputs])
    gradients = [size for size, is_float in (*inputs, *outputs) if is_float]
    saved = total([storage.type.bytes for storage in dict.fromkeys(step.saved)])
    reached = any(is_float for _, is_float in outputs) and (looks_up or any(is_float for _, is_float in inputs))
    return OpCost(
        name=step.path + (parameters[0].name if parameters else op.kind),
        op_class=op_class,
        routed=any(map(is_routed, matrices)),
        recompute=recompute,
        recast=recast if first else (),
        flops=_terms(flops),
        backward_flops=_terms(backward),
        forward_bytes=_terms(read + total([size for size, _ in outputs])),
        backward_bytes=_terms(total(gradients) + saved if reached else Int(0)),
        weights=sum(matrix.type.numel.value() for matrix in matrices) if is_product else 0,
        weight_bytes=1 if casts else matrices[0].type.dtype.bytes if matrices else 0,
        input_elements=_terms(_elements(node.input_types[0], sizes) if first else Int(0)),
        output_elements=_terms(_elements(node.output_types[0], sizes) if casts else Int(0)),
        key_value_bytes=_terms(total(_of_tokens(inputs[1:])) if op_class == "attention" else Int(0)),
    )


def _class_of(step: Step, flops: Dim, routed: bool, fp8: bool) -> OpClass:
    """Attention grows with the square of the sequence; a product whose rows are float32 is one of float32."""
    polynomial = flops.polynomial()
    if not polynomial:
        return "memory"
    if any(names.count("S") > 1 for names in polynomial):
        return "attention"
    if any(isinstance(t, TensorType) and t.shape and t.dtype is DType.FP32 for t in step.node.output_types):
        return "fp32_gemm"
    if fp8 and any(module in FP8_MODULES for module in step.path.split(".")):
        return "fp8_grouped" if routed else "fp8_gemm"
    return "gemm"


def _is_expert_row(step: Step) -> bool:
    """Whether the result has a row for each expert that a token chose."""
    result = step.outputs[0]
    return result is not None and CHOSEN in sizes_in_dim(result.type.shape[0])


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


def _of_tokens(sizes: list[tuple[Dim, bool]]) -> list[Dim]:
    """Those that grow with the batch: a table of positions does not."""
    return [size for size, _ in sizes if any("B" in names for names in size.polynomial())]


def _elements(type: ValueType, sizes: Mapping[str, Dim]) -> Dim:
    assert isinstance(type, TensorType)
    return type.numel.substitute(sizes)


def _terms(dim: Dim) -> Terms:
    return Terms(
        tuple(
            (float(c), names.count("B"), names.count("S"), tuple(name.dim for name in names if isinstance(name, Atom)))
            for names, c in dim.polynomial().items()
        )
    )


class Share(NamedTuple):
    """What one rank has of a micro-batch and of the weights: one part in so many."""

    tokens: int = 1
    dense: int = 1
    experts: int = 1


Vector = tuple[float, ...]  # seconds by class of op, in the order of CLASSES


class Seconds(NamedTuple):
    """One part on one rank, with nothing else running."""

    forward: Vector
    input_gradient: Vector
    weight_gradient: Vector
    again: tuple[tuple[tuple[str, ...], Vector], ...]
    """Forward once more, of ops by what asks for it."""

    def recompute(self, chosen: tuple[str, ...]) -> Vector:
        """What backward runs again."""
        return add([time for names, time in self.again if any(name in chosen or name == ALWAYS for name in names)])


def add(vectors: Iterable[Vector]) -> Vector:
    result = [0.0] * len(CLASSES)
    for vector in vectors:
        for position, value in enumerate(vector):
            result[position] += value
    return tuple(result)


def scaled(vector: Vector, factor: float) -> Vector:
    return tuple(value * factor for value in vector)


# Bytes moved per element cast to FP8: bfloat16 read, FP8 and its share of a float32 scale per 128 written.
CAST = 2 + 1 + 4 / 128
# The same for a transposed copy of what FP8 already holds.
TRANSPOSE = 2 * (1 + 4 / 128)
# A gradient of a weight is added to float32: read and written.
ACCUMULATE = 8


class Kernel(NamedTuple):
    """One kernel for all tokens of a micro-batch and whole weights, in seconds."""

    op_class: int
    """Its position in CLASSES."""
    computing: float
    moving: float
    """Of activations."""
    weights: float
    routed: bool


class Kernels(NamedTuple):
    """Of one part."""

    forward: tuple[tuple[Kernel, tuple[str, ...]], ...]
    """With what asks for each of them once more in backward."""
    input_gradient: tuple[Kernel, ...]
    weight_gradient: tuple[Kernel, ...]
    recast: tuple[tuple[Kernel, tuple[str, ...]], ...]
    """Of backward alone, and what asks for them."""


def seconds(ops: tuple[OpCost, ...], hardware: Hardware, batch: int, length: int, share: Share) -> Seconds:
    """A part on one rank: `batch` sequences of `length` tokens."""
    return on_rank(kernels(ops, hardware, batch, length), hardware, share)


def on_rank(part: Kernels, hardware: Hardware, share: Share) -> Seconds:
    """Every kernel as long as what limits it; the host's launches bound each pass from below."""
    floor = hardware.calibration.kernel_floor.value
    tokens, dense, experts = share

    def time(kernel: Kernel) -> float:
        moving = kernel.moving / tokens + kernel.weights / (experts if kernel.routed else dense)
        return max(kernel.computing / tokens, moving, floor)

    forward, data, weight = ([0.0] * len(CLASSES) for _ in range(3))
    again: dict[tuple[str, ...], list[float]] = {}
    for kernel, names in part.forward:
        took = time(kernel)
        forward[kernel.op_class] += took
        if names:
            again.setdefault(names, [0.0] * len(CLASSES))[kernel.op_class] += took
    for kernel, names in part.recast:
        again.setdefault(names, [0.0] * len(CLASSES))[kernel.op_class] += time(kernel)
    for times, some in ((data, part.input_gradient), (weight, part.weight_gradient)):
        for kernel in some:
            times[kernel.op_class] += time(kernel)
    return Seconds(
        _launched(forward, len(part.forward), hardware),
        _launched(data, len(part.input_gradient), hardware),
        _launched(weight, len(part.weight_gradient), hardware),
        tuple((names, tuple(times)) for names, times in sorted(again.items())),
    )


def _launched(times: list[float], kernels: int, hardware: Hardware) -> Vector:
    """Where the host is slower than the GPU, the GPU waits: told as time of memory-bound ops, the smallest."""
    wait = kernels * hardware.calibration.launch.value - sum(times)
    if wait > 0:
        times[POSITION["memory"]] += wait
    return tuple(times)


def kernels(ops: tuple[OpCost, ...], hardware: Hardware, batch: int, length: int) -> Kernels:
    forward, data, weight, recast = [], [], [], []
    for op in ops:
        passes = _passes(op, hardware, batch, length)
        forward += [(kernel, op.recompute) for kernel in passes[0]]
        data += passes[1]
        weight += passes[2]
        if op.recast:  # codes along the tokens, of wide numbers instead of codes along the features
            moved = op.input_elements.at(batch, length) * (CAST - TRANSPOSE)
            recast.append((_kernel(hardware, hardware.calibration.forward, "cast", moved=moved), op.recast))
    return Kernels(tuple(forward), tuple(data), tuple(weight), tuple(recast))


def _passes(op: OpCost, hardware: Hardware, batch: int, length: int) -> tuple[list[Kernel], list[Kernel], list[Kernel]]:
    """Kernels of forward, of the input's gradient and of the weights'."""
    calibration = hardware.calibration
    flops, backward = op.flops.at(batch, length), op.backward_flops.at(batch, length)
    moved, moved_back = op.forward_bytes.at(batch, length), op.backward_bytes.at(batch, length)

    def kernel(of: Efficiencies, flops: float = 0.0, moved: float = 0.0, weights: float = 0.0) -> Kernel:
        return _kernel(hardware, of, op.op_class, flops, moved, weights, op.routed)

    if op.op_class == "memory":
        back = [kernel(calibration.input_gradient, moved=moved_back)] if moved_back else []
        return [kernel(calibration.forward, moved=moved)], back, []
    if op.op_class == "attention":
        again = calibration.attention_backward_products.value
        back = [kernel(calibration.input_gradient, backward * again, moved_back)]
        return [kernel(calibration.forward, flops, moved)], back, []
    read = op.weights * op.weight_bytes
    forward = [kernel(calibration.forward, flops, moved, read)]
    data = [kernel(calibration.input_gradient, backward / 2, moved, read)]
    weight = [kernel(calibration.weight_gradient, backward / 2, moved, op.weights * ACCUMULATE)]
    given, result = op.input_elements.at(batch, length), op.output_elements.at(batch, length)
    if given:
        forward.append(_kernel(hardware, calibration.forward, "cast", moved=given * CAST))
        weight.append(_kernel(hardware, calibration.weight_gradient, "cast", moved=given * TRANSPOSE))
    if result:
        data.append(_kernel(hardware, calibration.input_gradient, "cast", moved=result * CAST))
        weight.append(_kernel(hardware, calibration.weight_gradient, "cast", moved=result * TRANSPOSE))
    return forward, data, weight


Efficiencies = dict[OpClass, Constant]


def _kernel(
    hardware: Hardware,
    of: Efficiencies,
    op_class: OpClass,
    flops: float = 0.0,
    moved: float = 0.0,
    weights: float = 0.0,
    routed: bool = False,
) -> Kernel:
    """`moved` and `weights` in bytes."""
    computing, bandwidth = hardware.rates(of, op_class)
    return Kernel(
        POSITION[op_class], flops / computing if flops else 0.0, moved / bandwidth, weights / bandwidth, routed
    )
