"""What training keeps from forward to backward: the memory behind the tensors that the ops of a block save.

Memory counts once however many tensors share it: a view keeps all of the tensor that it views, and a tensor that two
ops save counts once. Parameters do not count, nor do the few bytes that an op keeps in scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Dim, total
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import Saved
from dsc.compiler.graph.types import TensorType, ValueType

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """Memory, named by its origin: an argument, the output of a node, or a tensor of its own that an op saves."""

    place: str
    type: TensorType

    def __hash__(self) -> int:
        """Places are unique within a run, and types are slow to hash."""
        return hash(self.place)


@dataclass(frozen=True, eq=False)  # each is made once, and is a key of what is known of it
class Step:
    """One op of a run: the module that runs it, the memory of its operands and results, and what it saves."""

    path: str
    """Of the module, ending in a dot unless empty."""
    node: Node
    inputs: tuple[Storage | None, ...]
    outputs: tuple[Storage | None, ...]
    saved: tuple[Storage, ...]
    sizes: Mapping[str, Dim]
    """The module's own symbols in the terms of the whole run."""

    @cached_property
    def passing(self) -> tuple[Storage, ...]:
        """What its backward writes for a moment."""
        types = (_sized(one, self.sizes) for one in self.node.op.passing(self.node.input_types))
        return tuple(Storage(f"{self.path}{self.node.id}.passing[{index}]", one) for index, one in enumerate(types))


def trace(graph: Graph, key: str, sizes: Mapping[str, Dim] = MappingProxyType({})) -> tuple[Step, ...]:
    """Every op that runs when a block does, through all calls, in order; sizes in B and S, or in what `sizes` says."""
    run = _Run(graph)
    run.block(key, [_stored(value.name, value.type, sizes) for value in graph.blocks[key].inputs], "", sizes)
    return tuple(run.steps)


def saved_storages(graph: Graph, key: str) -> tuple[Storage, ...]:
    """What is saved after a block has run, with all that it calls, in order; sizes in B and S."""
    return tuple(dict.fromkeys(storage for step in trace(graph, key) for storage in step.saved))


def saved_bytes(graph: Graph, key: str) -> Dim:
    return total([storage.type.bytes for storage in saved_storages(graph, key)])


def _stored(place: str, type: ValueType | None, sizes: Mapping[str, Dim]) -> Storage | None:
    """None where it is not a tensor."""
    return Storage(place, _sized(type, sizes)) if isinstance(type, TensorType) else None


def _sized(type: TensorType, sizes: Mapping[str, Dim]) -> TensorType:
    return TensorType(tuple(dim.substitute(sizes) for dim in type.shape), type.dtype)


class _Wiring(NamedTuple):
    """Of a block, by their places among its inputs, what was prepared, and all that its nodes make."""

    inputs: list[list[int]]
    """Of each node."""
    outputs: list[int]


@dataclass
class _Run:
    """One forward, followed op by op through all calls."""

    graph: Graph
    steps: list[Step] = field(default_factory=list)
    prepared: set[Value] = field(default_factory=set)
    """Weights that were made before the run; as parameters, they are no memory of it."""
    wirings: dict[str, _Wiring] = field(default_factory=dict)
    known: dict[tuple[int, int], Any] = field(default_factory=dict)
    """By the identity of a node and of its sizes, what is the same each time that its block runs in them: of a call the
    sizes within, of an op the types of its memory and of what it saves."""

    def block(
        self, key: str, arguments: list[Storage | None], prefix: str, sizes: Mapping[str, Dim]
    ) -> list[Storage | None]:
        """The memory of a block's results; `sizes` are the block's symbols in the terms of the whole run."""
        block = self.graph.blocks[key]
        assert len(arguments) == len(block.inputs), f"{key} is called with {len(arguments)} values"
        self.prepared |= block.prepared
        wiring = self._wired(block)
        held: list[Storage | None] = [*arguments, *(None for _ in block.prepared)]
        for node, places in zip(block.nodes(), wiring.inputs, strict=True):
            inputs = [held[place] for place in places]
            outputs = self._call(node, inputs, prefix, sizes) if isinstance(node.op, Call) else None
            if outputs is None:
                outputs = self._memory(node, inputs, prefix, sizes)
                saved = self._saved(node, inputs, outputs, prefix, sizes)
                self.steps.append(Step(prefix, node, tuple(inputs), tuple(outputs), saved, sizes))
            held += outputs
        return [held[place] for place in wiring.outputs]

    def _wired(self, block: Block) -> _Wiring:
        """Found once for a block, which runs in many layers."""
        if block.key not in self.wirings:
            values = (*block.inputs, *block.prepared, *(value for node in block.nodes() for value in node.outputs))
            place = {value: index for index, value in enumerate(values)}
            self.wirings[block.key] = _Wiring(
                [[place[value] for value in node.inputs] for node in block.nodes()],
                [place[value] for value in block.outputs],
            )
        return self.wirings[block.key]

    def _call(
        self, node: Node, inputs: list[Storage | None], prefix: str, sizes: Mapping[str, Dim]
    ) -> list[Storage | None]:
        """Repeats follow each other: the first result of one is the first argument of the next."""
        assert isinstance(node.op, Call)
        inner = self._once(node, sizes, _inner)
        outputs: list[Storage | None] = []
        for callee, path in node.op.runs():
            arguments = [*outputs[:1], *inputs[len(outputs[:1]) : len(self.graph.blocks[callee].inputs)]]
            outputs = self.block(callee, arguments, f"{prefix}{path}." if path else prefix, inner)
        return outputs

    def _once(self, node: Node, sizes: Mapping[str, Dim], make: Callable[[Node, Mapping[str, Dim]], T]) -> T:
        key = (id(node), id(sizes))
        if key not in self.known:
            self.known[key] = (make(node, sizes), sizes)  # which keeps the sizes, so that no others have their identity
        made: T = self.known[key][0]
        return made

    def _memory(
        self, node: Node, inputs: list[Storage | None], prefix: str, sizes: Mapping[str, Dim]
    ) -> list[Storage | None]:
        memory, _ = self._once(node, sizes, _types)
        return [
            inputs[of] if isinstance(of, int) else None if of is None else Storage(f"{prefix}{node.id}[{index}]", of)
            for index, of in enumerate(memory)
        ]

    def _saved(
        self,
        node: Node,
        inputs: list[Storage | None],
        outputs: list[Storage | None],
        prefix: str,
        sizes: Mapping[str, Dim],
    ) -> tuple[Storage, ...]:
        kept = []
        for saved, type in self._once(node, sizes, _types)[1]:
            if type is not None:
                storage: Storage | None = Storage(f"{prefix}{node.id}.saved[{saved.index}]", type)
            elif saved.source == "input" and node.inputs[saved.index] in self.prepared:
                continue
            else:
                storage = (inputs if saved.source == "input" else outputs)[saved.index]
            assert storage is not None, f"{node.id} saves what is no tensor"
            kept.append(storage)
        return tuple(kept)


def _inner(node: Node, sizes: Mapping[str, Dim]) -> Mapping[str, Dim]:
    """The callees' symbols in the terms of the whole run."""
    assert isinstance(node.op, Call)
    return {name: dim.substitute(sizes) for name, dim in node.op.bindings(node.input_types).items()}


Kept = list[tuple[Saved, TensorType | None]]


def _types(node: Node, sizes: Mapping[str, Dim]) -> tuple[list[int | TensorType | None], Kept]:
    """Of an op's results, or whose memory they are; and of what it saves beside its operands and results."""
    memory = node.op.memory(node.input_types, node.output_types)
    saved = node.op.saved(node.input_types, node.output_types)
    return (
        [of if isinstance(of, int) else _sized(of, sizes) if isinstance(of, TensorType) else None for of in memory],
        [(one, None if one.type is None else _sized(one.type, sizes)) for one in saved],
    )
