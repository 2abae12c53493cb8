"""What every op of a step of inference asks of one GPU: FLOPs, weights, cache and activations, read off the graph.

Ops that repeat from layer to layer are read once and counted. How much of each a GPU has follows from the axes of its
tensors, as in the memory of the same plan (memory.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dsc.compiler.graph.cache_rows import CacheRow
from dsc.compiler.graph.dim import Axis, B, C, Dim, S
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.saved import Step
from dsc.compiler.graph.types import DType, TensorType, ValueType
from dsc.compiler.planner.machine.calibration import KernelClass
from dsc.compiler.planner.serving.memory import Request, Serving, ServingMemory, Storing, divided, held
from dsc.compiler.planner.serving.served import Served, Weight, is_pages, reads_cache, weights_of, writes_cache
from dsc.compiler.planner.time.ops import class_of

DIVIDED_WIDTHS = frozenset((Axis.HEADS, Axis.FEED_FORWARD))
"""Of what a product sums over: where tensor parallelism divides it, its ranks add up their results."""


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
        return Demand(*(count * amount for amount in self))


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
    kernel_class: KernelClass
    """How its kernel is limited."""
    weights: tuple[Weight, ...]
    """That it multiplies by."""
    rows: tuple[CacheRow, ...]
    """Of the cache that it reads or writes itself; where they are its operands, none."""

    @property
    def routed(self) -> bool:
        return any(weight.is_routed for weight in self.weights)

    @property
    def multiplies(self) -> bool:
        return self.step.node.op.op_class in (OpClass.PRODUCT, OpClass.GROUPED_PRODUCT)

    @property
    def attends(self) -> bool:
        return self.step.node.op.op_class is OpClass.ATTENTION

    def sent(self, load: Load) -> float:
        """Bytes of the rows that it sends to other ranks, those among them that stay."""
        if self.step.node.op.op_class is not OpClass.EXCHANGE:
            return 0.0
        return sum(type.bytes.value(load.sizes) for type in self._results) / load.serving.tp

    def adds_up(self, serving: Serving) -> bool:
        """Whether each rank of the group has but a part of the sums that are its result."""
        parameters = [one.parameter for one in self.weights if one.parameter is not None and not one.is_routed]
        summed = [one.type.shape[-1].axes() & DIVIDED_WIDTHS for one in parameters]
        dense = serving.dense_tp if any(Axis.FEED_FORWARD in axes for axes in summed) else serving.tp
        return dense > 1 and any(summed)

    def demand(self, load: Load, memory: ServingMemory) -> Demand:
        tp, context = load.serving.tp, 0.0
        flops = self._flops.value(load.sizes) / tp if self._counts else 0.0
        weights = sum(_read(weight, load) for weight in self.weights)
        moved = 0.0
        for type in self._touched:
            size = type.bytes.value(load.sizes) / (tp if divided(type) else 1)
            if self.attends and _of_context(type.bytes):
                context += size
            else:
                moved += size
        each = {row: memory.row_bytes(row, load.serving, load.storing) for row in self.rows}
        if reads_cache(self.step.node):
            context += load.sequences * sum(row.kept(load.request.context) * size for row, size in each.items())
        elif writes_cache(self.step.node):
            moved += load.tokens * sum(each.values())
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
        return self._cast.value(load.sizes) / load.serving.tp

    @cached_property
    def _cast(self) -> Dim:
        node = self.step.node
        return node.op.cast_bytes(node.input_types, node.output_types)[0].substitute(self.step.sizes)

    @cached_property
    def _results(self) -> tuple[TensorType, ...]:
        return tuple(_bound(self.step, self.step.node.output_types))

    @cached_property
    def _touched(self) -> tuple[TensorType, ...]:
        """Operands and results that are no weights and no rows of the cache."""
        node, weights = self.step.node, weights_of(self.step)
        if node.op.op_class is OpClass.LOOKUP:
            return (*self._results, *self._results)
        given = (value.type for value in node.inputs if value not in weights)
        return (*_bound(self.step, given), *self._results)


def work_of(served: Served, steps: Iterable[Step], memory: ServingMemory) -> tuple[Work, ...]:
    """Of a run of the graph that the engine runs, each op once."""
    counts: dict[tuple[object, ...], int] = {}
    first: dict[tuple[object, ...], Step] = {}
    for step in steps:
        made = [storage for storage in step.outputs if storage is not None]
        if step.node.op.is_view or (made and all(storage in step.inputs for storage in made)):
            continue
        key = (id(step.node), *sorted((name, str(size)) for name, size in step.sizes.items()))
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, step)
    return tuple(_work(served, step, counts[key], memory) for key, step in first.items())


def _work(served: Served, step: Step, count: int, memory: ServingMemory) -> Work:
    node = step.node
    multiplies = node.op.op_class in (OpClass.PRODUCT, OpClass.GROUPED_PRODUCT)
    matrices = tuple(one for one in served.read_by(step) if one.is_matrix) if multiplies else ()
    cached = reads_cache(node) or writes_cache(node)
    return Work(step, count, _class_of(step), matrices, memory.rows_of[step.path] if cached else ())


def _class_of(step: Step) -> KernelClass:
    """As in training; here a product is in FP8 where it reads codes."""
    codes = any(isinstance(type, TensorType) and type.dtype is DType.FP8 for type in step.node.input_types)
    match step.node.op.op_class, codes:
        case OpClass.PRODUCT, True:
            return "fp8_gemm"
        case OpClass.GROUPED_PRODUCT, True:
            return "fp8_grouped"
    return class_of(step)


def _read(weight: Weight, load: Load) -> float:
    """Bytes of a weight. Of routed experts those that a token chose: 1 - (1 - k / E)^tokens of them, expected."""
    _, (part, of) = held(weight.parameter, load.serving)
    size = weight.bytes * part / of
    if weight.parameter is None or not weight.is_routed:
        return size
    chosen, experts = (dim.value() for dim in weight.parameter.active)
    missed: float = (1 - chosen / experts) ** load.tokens_of_experts
    return size * (1 - missed)


def _bound(step: Step, types: Iterable[ValueType]) -> Iterator[TensorType]:
    """Tensors, in the sizes of the whole run."""
    for type in types:
        if isinstance(type, TensorType) and not is_pages(type):
            yield TensorType(tuple(dim.substitute(step.sizes) for dim in type.shape), type.dtype)


def _of_context(size: Dim) -> bool:
    """Whether it grows with the context, or does so until a window is full."""
    short, long = (size.value({B.name: 1, S.name: 1, C.name: tokens}) for tokens in (1, 2))
    return long > short
