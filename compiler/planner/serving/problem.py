"""One model to serve on one cluster: what is asked for, and one way to share the GPUs with what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.lines import MemoryLine
from dsc.compiler.planner.serving.estimate import Guesses, ServingCost, Speed
from dsc.compiler.planner.serving.expert_loads import Loads, PlacedLayer, place_by_load
from dsc.compiler.planner.serving.memory import Request, Rows, Serving, ServingMemory, ServingPlan, Storing
from dsc.compiler.planner.serving.served import Graphs, Phase
from dsc.compiler.planner.serving.work import Load
from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class ServingProblem:
    """One model to serve on one cluster."""

    spec: ModelSpec
    training: Graph
    graphs: Graphs
    """That the package's engine runs."""
    hardware: Hardware
    phase: Phase
    context: int
    """Tokens of a sequence in the cache: in decode those before the new one and itself, in prefill the whole prompt."""
    redundant: int = 0
    """Experts to be held twice, at least."""
    loads: Loads = ()
    """By which experts are placed; none where nobody measured them."""
    target: float | None = None
    """Seconds that may pass: to the first token in prefill, for each token in decode."""
    price: float | None = None
    """Dollars for an hour of a GPU."""
    acceptance: float | None = None
    """Of the guess of multi-token prediction; None: nothing is guessed."""
    others: bool = False
    """As engines do that exchange rows as DeepEP does, where the package exchanges a row for each expert."""

    @property
    def world(self) -> int:
        return self.hardware.gpus

    @property
    def capacity(self) -> int:
        """Bytes of one GPU."""
        return self.hardware.cluster.hbm_bytes

    @property
    def experts(self) -> int:
        """Routed ones of a layer."""
        return self.spec.moe().n_routed_experts if "moe" in self.spec.ffn_kinds else 0

    def on(self, nodes: int) -> ServingProblem:
        """On so many nodes of the same kind. What is known of the graphs holds there too."""
        other = replace(self, hardware=self.hardware.of_nodes(nodes))
        vars(other)["memory"] = self.memory
        return other

    @property
    def guesses(self) -> Guesses:
        if self.acceptance is None or self.spec.mtp is None:
            return Guesses()
        return Guesses(1, self.acceptance)  # the first depth serves

    def request(self, at_once: int | None = None) -> Request:
        """Of so many sequences in a step, or all that fit: whole prompts, or in decode a token and its guesses."""
        new = 1 + self.guesses.modules if self.phase == "decode" else self.context
        return Request(self.phase, self.context, new, at_once)

    @property
    def storing(self) -> Storing:
        """The cache as the spec says."""
        rows: Rows = "fp8" if self.spec.precision.kv_cache == "fp8" else "plain"
        return Storing(rows)

    @cached_property
    def memory(self) -> ServingMemory:
        graphs = Graphs(self.graphs.alone, self.graphs.alone) if self.others else self.graphs
        return ServingMemory(self.spec, self.training, graphs, self.phase, self.guesses.modules > 0)

    @cached_property
    def cost(self) -> ServingCost:
        return ServingCost(self.memory, self.hardware, self.others)

    @cached_property
    def _imbalances(self) -> dict[tuple[int, int], float]:
        return {}

    def placed(self, serving: Serving) -> tuple[PlacedLayer, ...]:
        """Experts by their load, layer by layer; empty where no loads are known."""
        if not self.loads:
            return ()
        gpus = serving.ep or serving.gpus
        packaged = self.spec.serving is not None  # a package's engine looks at loads alone
        node = gpus if packaged else self.hardware.cluster.gpus_per_node
        return place_by_load(self.spec, self.loads, serving.slots, gpus, node)

    def speed(self, serving: Serving, storing: Storing, sequences: int) -> Speed:
        """With so many sequences of a group in a step."""
        load = Load(serving, storing, self.request(sequences), sequences)
        return self.cost.speed(load, self.guesses, self._imbalance(serving))

    def _imbalance(self, serving: Serving) -> float | None:
        """Of the layers' busiest GPUs, on average."""
        if not self.loads:
            return None
        key = serving.slots, serving.ep or serving.gpus
        if key not in self._imbalances:
            layers = [layer.imbalance for layer in self.placed(serving)]
            self._imbalances[key] = sum(layers) / len(layers)
        return self._imbalances[key]


@dataclass(frozen=True)
class Option:
    """One way to share the GPUs, and what comes of it."""

    serving: Serving
    storing: Storing
    lines: tuple[MemoryLine, ...]
    """Of one GPU; where it does not fit, with a single sequence."""
    plan: ServingPlan | None = None
    """None where it does not fit."""
    batch: int = 0
    """Sequences of one step of a group."""
    speed: Speed | None = None

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def sequences(self) -> int:
        """Of the whole deployment, at once."""
        return self.plan.sequences * self.serving.dp if self.plan else 0

    def meets(self, target: float | None) -> bool:
        """Whether nobody waits longer than asked for."""
        return self.speed is not None and (target is None or self.speed.waited <= target)
