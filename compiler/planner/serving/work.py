"""What every op of a step of inference asks of one GPU: FLOPs, weights, cache and activations, read off the graph.

Ops that repeat from layer to layer are read once and counted. How much of each a GPU has follows from the axes of its
tensors, as in the memory of the same plan (memory.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dsc.compiler.graph.cache_rows import CacheRow
from dsc.compiler.graph.dim import Axis, B, C, Dim, S
from dsc.compiler.graph.op import OpClass, Parameter
from dsc.compiler.graph.saved import Step
from dsc.compiler.graph.types import CacheType, TensorType
from dsc.compiler.planner.machine.calibration import KernelClass
from dsc.compiler.planner.serving.memory import Request, Serving, ServingMemory, Storing, divided, held
from dsc.compiler.planner.time.ops import CAST, CASTING, class_of

DIVIDED_WIDTHS = frozenset((Axis.HEADS, Axis.FEED_FORWARD))
"""Of what a product sums over: where tensor parallelism divides it, its ranks add up their results."""

TOKENS = frozenset((Axis.BATCH, Axis.SEQUENCE))


class Demand(NamedTuple):
    """Of one kernel on one GPU."""

    flops: float
    weights: float
    """Bytes read of them."""
    context: float
    """Bytes read of keys and values, or of the latents that stand for them."""
    activations: float
    """Bytes of them, read and written."""

    @property
    def bytes(self) -> float:
        return self.weights + self.context + self.activations

    def times(self, count: int) -> Demand:
        return Demand(*(count * one for one in self))


@dataclass(frozen=True)
class Load:
    """What a step works on, in one group of tp GPUs."""

    serving: Serving
    storing: Storing
    request: Request
    sequences: int
    """Of one step."""

    @property
    def tokens(self) -> int:
        """New ones of the group."""
        return self.sequences * self.request.new_tokens

    @property
    def tokens_of_experts(self) -> float:
        """New ones of all groups that share the experts."""
        return self.tokens * (self.serving.ep or self.serving.gpus) / self.serving.tp

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        return {B.name: self.sequences, S.name: self.request.new_tokens, C.name: self.request.context}


@dataclass(frozen=True)
class Work:
    """One op, as often as it runs in a step."""

    step: Step
    count: int
    in_fp8: KernelClass
    """How its kernel is limited where weights are kept in FP8."""
    plain: KernelClass
    """The same where they are not."""
    parameters: tuple[Parameter, ...]
    """Matrices that it multiplies by."""
    rows: tuple[CacheRow, ...]
    """Of the cache that it reads itself; where they are its operands, none."""

    def kernel_class(self, storing: Storing) -> KernelClass:
        return self.in_fp8 if storing.fp8_weights else self.plain

    @property
    def routed(self) -> bool:
        return any(parameter.is_routed for parameter in self.parameters)

    @property
    def multiplies(self) -> bool:
        return self.step.node.op.op_class in (OpClass.PRODUCT, OpClass.GROUPED_PRODUCT)

    @property
    def attends(self) -> bool:
        return self.step.node.op.op_class is OpClass.ATTENTION

    def adds_up(self, serving: Serving) -> bool:
        """Whether each rank of the group has but a part of the sums that are its result."""
        summed = [one.type.shape[-1].axes() & DIVIDED_WIDTHS for one in self.parameters if not one.is_routed]
        dense = serving.dense_tp if any(Axis.FEED_FORWARD in axes for axes in summed) else serving.tp
        return dense > 1 and any(summed)

    def demand(self, load: Load, memory: ServingMemory) -> Demand:
        sizes, tp = self.step.sizes, load.serving.tp
        flops = self._flops.value(load.sizes) / tp if self._counts else 0.0
        weights = sum(self._read(parameter, load) for parameter in self.parameters)
        context: float = load.sequences * sum(
            row.kept(load.request.context) * memory.row_bytes(row, load.serving, load.storing) for row in self.rows
        )
        moved = 0.0
        for type in self._touched():
            bytes = type.bytes.substitute(sizes)
            size = bytes.value(load.sizes)
            if self._counts and not TOKENS & type.axes:  # a weight that was prepared
                weights += size / (tp if Axis.HEADS in type.axes else 1)
            elif self.attends and _of_context(bytes):
                context += size / (tp if divided(type) else 1)
            else:
                moved += size / (tp if divided(type) else 1)
        return Demand(flops, weights, context, moved)

    @property
    def _counts(self) -> bool:
        """Whether its FLOPs count."""
        return self.step.node.op.op_class not in (OpClass.MEMORY, OpClass.LOOKUP)

    @cached_property
    def _flops(self) -> Dim:
        return self.step.node.flops().substitute(self.step.sizes)

    def cast(self, load: Load) -> float:
        """Bytes that a product in FP8 moves to quantize its input."""
        if self.kernel_class(load.storing) not in CASTING:
            return 0.0
        (x, *_) = self.step.node.input_types
        assert isinstance(x, TensorType)
        return x.numel.substitute(self.step.sizes).value(load.sizes) * CAST / load.serving.tp

    def _touched(self) -> Iterator[TensorType]:
        """Operands and results. What is appended to the cache is the new rows: read, and written there."""
        node = self.step.node
        first = node.input_types[:1]
        touched = (*first, *first) if node.op.in_cache else (*node.input_types, *node.output_types)
        if node.op.op_class is OpClass.LOOKUP:
            touched = (*node.output_types, *node.output_types)
        return (type for type in touched if isinstance(type, TensorType))

    def _read(self, parameter: Parameter, load: Load) -> float:
        """Bytes of a weight. Of routed experts those that a token chose: 1 - (1 - k / E)^tokens of them, expected."""
        _, (part, of) = held(parameter.type, parameter.is_routed, load.serving)
        numbers, width = parameter.type.numel.value(), parameter.type.dtype.bytes
        size = numbers * (1 if self.kernel_class(load.storing) in CASTING else width) * part / of
        if not parameter.is_routed:
            return size
        chosen, experts = (dim.value() for dim in parameter.active)
        missed: float = (1 - chosen / experts) ** load.tokens_of_experts
        return size * (1 - missed)


def work_of(steps: Iterable[Step], memory: ServingMemory) -> tuple[Work, ...]:
    """Of a run of the graph that inference runs, each op once."""
    in_fp8 = memory.spec.precision.fp8_products()
    counts: dict[tuple[object, ...], int] = {}
    first: dict[tuple[object, ...], Step] = {}
    for step in steps:
        made = [storage for storage in step.outputs if storage is not None]
        views = made and not step.node.op.in_cache and all(one in step.inputs for one in made)
        if step.node.op.is_view or views:
            continue
        key = (id(step.node), *sorted((name, str(size)) for name, size in step.sizes.items()))
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, step)
    return tuple(_work(step, counts[key], memory, in_fp8) for key, step in first.items())


def _work(step: Step, count: int, memory: ServingMemory, in_fp8: Set[str]) -> Work:
    op = step.node.op
    multiplies = op.op_class in (OpClass.PRODUCT, OpClass.GROUPED_PRODUCT)
    own = [one.substitute(step.sizes) for one in op.parameters() if len(one.type.shape) > 1]
    theirs = [memory.parameters()[name] for name in op.borrowed()]
    reads = op.op_class is OpClass.ATTENTION and any(isinstance(t, CacheType) for t in step.node.input_types)
    return Work(
        step,
        count,
        class_of(step, in_fp8),
        class_of(step, frozenset()),
        (*own, *theirs) if multiplies else (),
        memory.rows_of[step.path] if reads else (),
    )


def _of_context(size: Dim) -> bool:
    """Whether it grows with the context, or does so until a window is full."""
    one, two = (size.value({B.name: 1, S.name: 1, C.name: tokens}) for tokens in (1, 2))
    return two > one
