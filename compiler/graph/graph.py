"""The graph of a model: its blocks, each once however often it repeats, and how they call each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.op import Op, Parameter, Types

ROOT_CLASS = "Model"


class Call(Op):
    """An op that runs other blocks. Which, how often and with which sizes is all that costs need to know."""

    def runs(self) -> tuple[tuple[str, str], ...]:
        """What runs, in order: (key of the block, "Class.method"; attribute path of its module, "" for the same)."""
        raise TypeError(type(self))

    def callees(self) -> tuple[str, ...]:
        """The keys of the blocks, each once."""
        return tuple(dict.fromkeys(key for key, _ in self.runs()))

    def bindings(self, inputs: Types) -> Mapping[str, Dim]:
        """The callees' symbols in the caller's terms: constructor sizes and run-time sizes."""
        raise TypeError(type(self))


@dataclass(frozen=True)
class Graph:
    """Blocks by key in reading order, leaves first; `root` is the class of the model."""

    blocks: Mapping[str, Block]
    constants: Constants
    root: str = ROOT_CLASS

    def map(self, change: Callable[[Block], Block]) -> Graph:
        """Every block changed by a function."""
        return replace(self, blocks={key: change(block) for key, block in self.blocks.items()})

    def methods(self, class_name: str) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks.values() if block.class_name == class_name)

    def walk(self, key: str, prefix: str = "") -> Iterator[tuple[str, Node, Mapping[str, Dim]]]:
        """Every node that runs when a block does, through all calls: (module path, node, sizes bound)."""
        yield from self._walk(key, prefix, {})

    def _walk(self, key: str, prefix: str, sizes: Mapping[str, Dim]) -> Iterator[tuple[str, Node, Mapping[str, Dim]]]:
        for node in self.blocks[key].nodes():
            yield prefix, node, sizes
            if isinstance(node.op, Call):
                bindings = node.op.bindings(node.input_types)
                inner = {name: dim.substitute(sizes) for name, dim in bindings.items()}
                for callee, path in node.op.runs():
                    yield from self._walk(callee, f"{prefix}{path}." if path else prefix, inner)

    def executions(self, key: str, prefix: str = "") -> Iterator[tuple[str, Block]]:
        """Every block that runs when one does, itself first, as often as it runs: (module path, block)."""
        yield prefix, self.blocks[key]
        for node in self.blocks[key].nodes():
            if isinstance(node.op, Call):
                for callee, path in node.op.runs():
                    yield from self.executions(callee, f"{prefix}{path}." if path else prefix)

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter of the model by its full name, shapes with the constructor's sizes filled in."""
        return dict(self._parameters)

    @cached_property
    def _parameters(self) -> dict[str, Parameter]:
        known: dict[str, dict[str, Parameter]] = {}
        found: dict[str, Parameter] = {}
        for block in self.methods(self.root):
            found.update(self._parameters_of(block.key, known))
        return found

    def _parameters_of(self, key: str, known: dict[str, dict[str, Parameter]]) -> dict[str, Parameter]:
        """Those of a block and all that it calls; each block is looked through once, however often it repeats."""
        if key in known:
            return known[key]
        found: dict[str, Parameter] = {}
        for node in (*self.blocks[key].once, *self.blocks[key].nodes()):
            found.update((parameter.name, parameter) for parameter in node.op.parameters())
            if isinstance(node.op, Call):
                sizes = node.op.bindings(node.input_types)
                bound = {
                    callee: {name: p.substitute(sizes) for name, p in self._parameters_of(callee, known).items()}
                    for callee in node.op.callees()
                }
                for callee, path in node.op.runs():
                    prefix = f"{path}." if path else ""
                    found.update((prefix + name, parameter) for name, parameter in bound[callee].items())
        known[key] = found
        return found

    def flops(self, key: str) -> Dim:
        """Forward FLOPs of a block and all that it calls, a formula in B and S."""
        result: Dim = Int(0)
        for node in self.blocks[key].nodes():
            if isinstance(node.op, Call):
                bindings = node.op.bindings(node.input_types)
                for callee, count in Counter(callee for callee, _ in node.op.runs()).items():
                    result = result + self.flops(callee).substitute(bindings) * count
            else:
                result = result + node.flops()
        return result
