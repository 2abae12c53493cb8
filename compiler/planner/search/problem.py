"""One model to train on one cluster: what any layout of it takes, memory and time, each known once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.state import with_emitted_state
from dsc.compiler.planner.layout.layout import Layout, global_batch
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.ledger import MemoryModel
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.time.overlap import OtherEngines
from dsc.compiler.planner.time.step import CostModel, StepTime
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement

# A part's weight in the split into stages, relative to the heaviest: so coarse, many layouts split alike.
WEIGHT_STEPS = 64


@dataclass(frozen=True)
class Problem:
    """One model to train on one cluster."""

    spec: ModelSpec
    graph: Graph
    """The training graph as it is emitted: its tensors fill the memory, its ops take the time."""
    shared: Graph
    """The same where ranks share the experts out."""
    hardware: Hardware
    in_context: tuple[Graph, Graph] | None = None
    """The same two graphs where ranks share sequences, if those run others."""
    others: OtherEngines | None = None
    """Where it is another engine that trains, for comparison."""
    asked: ModelSpec | None = None
    """The spec as its user wrote it, where `spec` has the precision that is emitted instead."""
    in_tensor: tuple[Graph, Graph] | None = None
    """The two graphs where ranks share heads, widths and the vocabulary, if those run others."""
    in_both: tuple[Graph, Graph] | None = None
    """The two graphs where ranks share sequences in both ways."""

    @property
    def written(self) -> ModelSpec:
        return self.asked or self.spec

    def of(self, layout: Layout) -> Problem:
        """The problem whose graphs are those that a layout runs."""
        if layout.cp > 1:
            return self._both if layout.tp > 1 else self._context
        return self._tensor if layout.tp > 1 else self

    @cached_property
    def _context(self) -> Problem:
        return self._running(self.in_context)

    @cached_property
    def _tensor(self) -> Problem:
        return self._running(self.in_tensor)

    @cached_property
    def _both(self) -> Problem:
        return self._running(self.in_both) if self.in_both else self._context

    def _running(self, graphs: tuple[Graph, Graph] | None) -> Problem:
        if graphs is None:
            return self
        return replace(self, graph=graphs[0], shared=graphs[1], in_context=None, in_tensor=None, in_both=None)

    @property
    def world(self) -> int:
        return self.hardware.gpus

    @property
    def capacity(self) -> int:
        """Bytes of one GPU."""
        return self.hardware.cluster.hbm_bytes

    @cached_property
    def batch(self) -> int:
        """Sequences of one step."""
        return global_batch(self.spec, self.world)

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self._run, self.graph, self.hardware, self.shared, self.others)

    @cached_property
    def memory(self) -> MemoryModel:
        shared = None if self.others else self.shared
        domain = self.hardware.cluster.scale_up_domain
        return MemoryModel(self._run, self.graph, self.hardware.is_gpu, shared, domain)

    def elsewhere(self) -> Problem:
        """What other engines make of it: their all-to-alls, their FP8, overlap beside whatever runs again."""
        has_fp8 = self.hardware.cluster.fp8_flops is not None
        products = self.spec.precision.fp8_products() if has_fp8 else frozenset()
        other = replace(self, others=OtherEngines(products, recompute_hides=True))
        alike = not products and "moe" not in self.spec.ffn_kinds and self._run == self.spec
        if not alike or self.spec.precision.parameters == "fp32":
            return other
        for name in ("_sizes", "_bounds", "_steps"):  # dense layers in wide types are the same there
            vars(other)[name] = getattr(self, name)
        return self._knowing(other)

    @property
    def _run(self) -> ModelSpec:
        """With the training state that the trainer has, whatever the spec asks for."""
        return self.spec if self.others else with_emitted_state(self.spec)

    @cached_property
    def _stages(self) -> dict[tuple[object, ...], Stages]:
        return {}

    @cached_property
    def _weights(self) -> dict[tuple[object, ...], tuple[int, ...]]:
        return {}

    @cached_property
    def _steps(self) -> dict[Layout, StepTime]:
        return {}

    @cached_property
    def _sizes(self) -> dict[Layout, int]:
        return {}

    @cached_property
    def _bounds(self) -> dict[Layout, float]:
        return {}

    def on(self, nodes: int) -> Problem:
        """On so many nodes. What is known of parts and stages holds there too."""
        return self._knowing(replace(self, hardware=self.hardware.of_nodes(nodes)))

    def pinned(self, placement: Placement) -> Problem:
        """With other pins."""
        return self._knowing(replace(self, spec=self.spec.model_copy(update={"placement": placement})))

    def _knowing(self, other: Problem) -> Problem:
        for name in ("cost", "memory", "_stages", "_weights"):
            vars(other)[name] = getattr(self, name)
        ways = ("_context", self.in_context), ("_tensor", self.in_tensor), ("_both", self.in_both)
        for name, graphs in ways:
            if graphs is not None:
                vars(other)[name] = getattr(self, name)._knowing(other._running(graphs))
        return other

    def stages(self, layout: Layout) -> Stages:
        """Parts of each stage, balanced by their time."""
        if self.of(layout) is not self:
            return self.of(layout).stages(layout)
        pairs = self.cost.overlap.hides(layout)
        alike = (pairs, layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.etp)
        key = (alike, layout.chunks)
        if key not in self._stages:
            if alike not in self._weights:
                plain = replace(layout, schedule="dualpipe" if pairs else "1f1b", zero=0, recompute=())
                exact = self.cost.weights(plain)
                most = max(exact)
                self._weights[alike] = tuple(max(1, round(WEIGHT_STEPS * one / most)) for one in exact)
            self._stages[key] = self.memory.split(layout, self._weights[alike])
        return self._stages[key]

    def bytes(self, layout: Layout) -> int:
        """Of the fullest rank."""
        if layout not in self._sizes:
            self._sizes[layout] = self.of(layout).memory.fullest(layout, self.batch, self.stages(layout))
        return self._sizes[layout]

    def kept_bytes(self, layout: Layout) -> int:
        """The same without what lives for a moment."""
        return self.of(layout).memory.fullest(layout, self.batch, self.stages(layout), working=False)

    def bound(self, layout: Layout) -> float:
        if layout not in self._bounds:
            self._bounds[layout] = self.of(layout).cost.bound(layout, self.stages(layout), self.batch)
        return self._bounds[layout]

    def step(self, layout: Layout) -> StepTime:
        if layout not in self._steps:
            self._steps[layout] = self.of(layout).cost.step(layout, self.stages(layout), self.batch)
        return self._steps[layout]
