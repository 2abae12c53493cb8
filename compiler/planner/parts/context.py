"""What of a part a rank has of whole sequences, where ranks share them: what they send each other, and what follows.

That is what the pass that shares sequences gathers (passes/context.py), and all that leads from there to attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.tensor import GatherSequence
from dsc.compiler.passes.context import rows_sent
from dsc.compiler.passes.recompute import made_in

Rows = Mapping[int, tuple[int, ...]]
"""By the identity of a node, which of its results ranks send each other."""


@dataclass(frozen=True)
class Whole:
    """Of one part."""

    sent: tuple[Storage, ...]
    """What each rank sends of its tokens, and has of all then."""
    storages: frozenset[Storage]
    """What it has of whole sequences, those among them."""
    steps: frozenset[int]
    """Positions of the steps that run for whole sequences on every rank."""
    halves: frozenset[Storage]
    """What attention keeps of each half of a rank's tokens, and a copy that joins the halves is kept too."""


def rows_of(graph: Graph) -> Rows:
    found: dict[int, tuple[int, ...]] = {}
    for block in graph.blocks.values():
        for value in rows_sent(block):
            node = block.producer(value)
            if node is not None:
                found[id(node)] = (*found.get(id(node), ()), value.index)
    return found


def whole(steps: tuple[Step, ...], rows: Rows) -> Whole:
    """Forward from the rows, within their attention's module, as far as its core."""
    sent = tuple(one for step in steps for index in rows.get(id(step.node), ()) if (one := step.outputs[index]))
    storages, again = set(sent), set[int]()
    modules = {step.path for step in steps if id(step.node) in rows}
    behind: set[str] = set()
    halves: set[Storage] = set()
    for index, step in enumerate(steps):
        if step.path not in modules:
            continue
        if step.node.op.op_class is OpClass.ATTENTION:
            storages.update(_keys_kept(step))
            halves.update(one for one in step.outputs if one in step.saved)
            behind.add(step.path)
        elif isinstance(step.node.op, GatherSequence):  # among ranks that share heads: of each row by itself
            pairs = zip(step.inputs, step.outputs, strict=True)
            storages.update(made for one, made in pairs if one in storages and made is not None)
        elif id(step.node) not in rows and step.path not in behind and storages & set(step.inputs):
            again.add(index)
            storages |= made_in(step)
    return Whole(sent, frozenset(storages), frozenset(again), frozenset(halves))


def _keys_kept(attention: Step) -> Iterator[Storage]:
    """Keys and values that attention keeps for itself, padded."""
    op = attention.node.op
    which = {"padded_v": 1, "padded_qk": 2}.get(op.variant) if isinstance(op, CausalAttention) else None
    place = f"{attention.path}{attention.node.id}.saved[{which}]"
    yield from (one for one in attention.saved if one.place == place)
