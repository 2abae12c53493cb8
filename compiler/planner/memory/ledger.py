"""Bytes of every rank, line by line: what is held through the whole step, and what the pipeline holds at its fullest.

Sizes are read off the graph once for each kind of part; what a layout makes of them is arithmetic on integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil

from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Parameter
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.planner.layout.layout import Activations, Layout
from dsc.compiler.planner.machine.calibration import Constant, Provenance
from dsc.compiler.planner.parts.parts import Part, parts_of
from dsc.compiler.planner.parts.recompute import SCALED_TILE, attended, dispatched, fp8_storages, inside, kept
from dsc.compiler.planner.parts.shard import VOCABULARY, Elements, Extent, elements, extent, share, sizes_in
from dsc.compiler.planner.parts.stages import Stages, split, weights
from dsc.compiler.planner.parts.working import backward_peak, forward_peak
from dsc.compiler.planner.pipeline.schedule import Schedule, actions, holdings, stages_of_rank
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Precision

BYTES = {"bf16": 2, "fp32": 4, "none": 0}

RESERVE = Constant(
    1.040, "assumed", "reserved / allocated over SimuMax's 43 measured B200 and A100 runs: median, 1.028 to 1.093"
)
CONTEXT = Constant(1.26 * 2**30, "assumed", "DeepEP issue 510: 79.10 - 77.84 GiB of an H100 gone before any buffer")
NCCL = Constant(392 * 2**20, "assumed", "aiconfigurator's table for 4 ranks and more")
EXPERT_BUFFER = Constant(
    (453_380_736 + 56_774_016) / 7168,
    "assumed",
    "DeepEP pull request 434: NVLink and RDMA buffers of 16 ranks, 453,380,736 + 56,774,016 bytes for tokens of 7168",
)


@dataclass(frozen=True)
class Line:
    """One row of a ledger."""

    name: str
    bytes: int
    provenance: Provenance
    source: str
    """Formula, or who says so."""
    tensors: tuple[str, ...] = ()
    """Of the graph: parameters, or what is saved."""


@dataclass(frozen=True)
class Role:
    """Pipeline ranks that hold the same, and what each GPU of theirs holds."""

    ranks: tuple[int, ...]
    stages: tuple[int, ...]
    """Of the first of the ranks."""
    parts: tuple[tuple[str, ...], ...]
    """Of each stage."""
    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def allocated(self) -> int:
        """By PyTorch's allocator: tensors, without what it reserves beside them and what others allocate."""
        return sum(line.bytes for line in self.lines if line.name not in ASSUMED)


WEIGHTS, GATHERED, GRADIENTS = "weights", "gathered weights", "gradients"
MASTER, MOMENTS, LOGITS = "master weights", "optimizer moments", "logits"
ACTIVATIONS = "activations of "
WORKING, TRANSFERS = "working memory", "pipeline transfers"
ALLOCATOR, CUDA, COLLECTIVES, EXPERT_BUFFERS = (
    "allocator reserve",
    "CUDA context",
    "collective buffers",
    "expert buffers",
)
ASSUMED = {ALLOCATOR: RESERVE, CUDA: CONTEXT, COLLECTIVES: NCCL, EXPERT_BUFFERS: EXPERT_BUFFER}
SOURCES = {
    WEIGHTS: "parameters of the stages",
    GATHERED: "the part that runs and the next one, whole",
    GRADIENTS: "one for each parameter",
    MASTER: "one for each parameter, over those who share it where zero >= 1",
    MOMENTS: "two for each parameter, over those who share it where zero >= 1",
    LOGITS: "what the loss keeps of the vocabulary, for each micro-batch in flight",
    WORKING: "results and gradients that live for a moment, and the gradient of the largest weight",
    TRANSFERS: "hidden states and their gradients on their way, in and out",
}
SCALE = 4
"""Bytes of a tile's scale."""
TRANSFERRED = 4
"""Hidden states in and out, and the gradients of both."""


@dataclass(frozen=True)
class Held:
    """What one part keeps of one micro-batch, before sharding."""

    storages: tuple[tuple[Storage, Extent], ...]
    """What nobody else keeps, in the order of saving."""
    shared: tuple[tuple[Storage, Extent], ...]
    """What other parts of the same stage may keep too: it counts once."""
    forward: int
    """The most bytes that forward needs for a moment, less what it keeps."""
    backward: int
    """The same for backward, less what was kept."""

    @cached_property
    def own(self) -> Extent:
        return sum((size for one, size in self.storages if not is_logits(one)), Extent())

    @cached_property
    def logits(self) -> Extent:
        return sum((size for one, size in self.storages if is_logits(one)), Extent())


def is_logits(storage: Storage) -> bool:
    return VOCABULARY in sizes_in(storage.type)


@dataclass(frozen=True)
class StageBytes:
    """Of one stage on one rank."""

    by_kind: tuple[tuple[str, int], ...]
    """Activations of one micro-batch, by kind of part."""
    activations: int
    """Their sum."""
    logits: int
    """Of one micro-batch."""
    working: int
    """Of the part that needs most, forward or backward, whatever the number of micro-batches."""

    @property
    def kept(self) -> int:
        return self.activations + self.logits


class Memory:
    """The memory model of one spec: sizes are read off its graph when they are first asked for."""

    def __init__(self, spec: ModelSpec, graph: Graph) -> None:
        self.spec = spec
        self.parts = parts_of(graph)
        # The last of each kind: what the first layer receives is read by the table of rotations too, which is no layer.
        self._examples = {part.kind: part for part in self.parts}
        self._shared = _shared(self.parts)
        self._held: dict[tuple[str, tuple[str, ...], Activations, int, bool], Held] = {}
        self._stage_bytes: dict[tuple[object, ...], StageBytes] = {}
        self._parameters: dict[str, Elements] = {}
        self._counted: dict[tuple[Storage, int], int] = {}
        self._sizes: dict[str, tuple[Elements, ...]] = {}
        self._known_outside: dict[tuple[bool, bool], int] = {}
        self._stage_elements: dict[tuple[str, ...], Elements] = {}
        self._roles: dict[tuple[object, ...], tuple[_Structure, ...]] = {}

    def split(self, layout: Layout, costs: Sequence[int] | None = None) -> Stages:
        """Parts of each stage, balanced by FLOPs unless costs are given."""
        length = self.spec.workload.sequence_length
        return split(self.parts, weights(self.parts, length) if costs is None else costs, layout.chunks)

    def fullest(self, layout: Layout, batch: int, stages: Stages, working: bool = True) -> int:
        """Bytes of the rank that needs most, or would without what lives for a moment."""
        return max(
            sum(self._amounts(layout, structure, working).values())
            for structure in self._structures(layout, batch, stages)
        )

    def ledger(self, layout: Layout, batch: int, stages: Stages) -> tuple[Role, ...]:
        """Every pipeline rank, those that hold the same together."""
        roles = []
        for structure in self._structures(layout, batch, stages):
            own = tuple(stages[stage] for stage in layout.stages(structure.ranks[0]))
            names = tuple(tuple(self.parts[index].name for index in stage) for stage in own)
            lines = tuple(self._lines(layout, structure))
            roles.append(Role(structure.ranks, layout.stages(structure.ranks[0]), names, lines))
        return tuple(roles)

    def held(
        self,
        kind: str,
        recompute: tuple[str, ...],
        activations: Activations,
        micro_batch: int,
        away: bool = False,
    ) -> Held:
        """What a part of this kind keeps of one micro-batch. `away`: experts work for other ranks' tokens too."""
        key = (kind, recompute, activations, micro_batch, away)
        if key not in self._held:
            self._held[key] = self._measure(*key)
        return self._held[key]

    def held_on(self, kind: str, layout: Layout) -> Held:
        away = layout.ep * layout.etp > 1
        return self.held(kind, layout.recompute, layout.activations, layout.micro_batch, away)

    def _measure(
        self, kind: str, recompute: tuple[str, ...], activations: Activations, micro_batch: int, away: bool
    ) -> Held:
        steps = self._examples[kind].steps
        small, twelve = (fp8_storages(steps), attended(steps)) if activations == "fp8" else (frozenset(), frozenset())
        found = kept(steps, recompute, narrow=twelve)
        received = dispatched(steps) if away else ()
        if "full" in recompute:
            found = replace(found, remade=(*found.remade, *received))
        else:
            found = replace(found, storages=(*found.storages, *received))

        def size(one: Storage) -> int:
            numbers = self._numbers(one, micro_batch)
            if one in small or one in twelve:
                return numbers * (12 if one in twelve else 8) // 8 + numbers // SCALED_TILE * SCALE
            return numbers * one.type.dtype.bytes

        sized = [(one, extent(one.type, size(one))) for one in found.storages]
        return Held(
            tuple(pair for pair in sized if pair[0] not in self._shared),
            tuple(pair for pair in sized if pair[0] in self._shared),
            forward_peak(steps, found, size) + sum(size(one) for one in inside(steps)),
            backward_peak(steps, found, size) + sum(size(one) for one in inside(steps)),
        )

    def _numbers(self, storage: Storage, micro_batch: int) -> int:
        """Elements, counted once for all that ask."""
        key = (storage, micro_batch)
        if key not in self._counted:
            sizes = {"B": micro_batch, "S": self.spec.workload.sequence_length}
            self._counted[key] = storage.type.numel.value(sizes)
        return self._counted[key]

    def stage(self, kinds: tuple[str, ...], layout: Layout) -> StageBytes:
        """A stage of such parts, in this order, on one rank."""
        key = (
            kinds,
            layout.cp,
            layout.tp,
            layout.ep,
            layout.etp,
            layout.recompute,
            layout.activations,
            layout.micro_batch,
        )
        if key not in self._stage_bytes:
            self._stage_bytes[key] = self._stage(kinds, layout)
        return self._stage_bytes[key]

    def _stage(self, kinds: tuple[str, ...], layout: Layout) -> StageBytes:
        held = [self.held_on(kind, layout) for kind in kinds]
        by_kind: dict[str, int] = {}
        known: set[Storage] = set()
        for kind, one in zip(kinds, held, strict=True):  # what parts share stands with the first
            fresh = sum((size for storage, size in one.shared if storage not in known), Extent())
            known.update(storage for storage, _ in one.shared)
            by_kind[kind] = by_kind.get(kind, 0) + (one.own + fresh).on(layout)
        ranks = layout.cp * layout.tp
        later, peak = 0, 0
        for kind, one in zip(reversed(kinds), reversed(held), strict=True):
            gradient = self._largest_gradient(kind, layout)
            peak = max(peak, share(one.forward, ranks) - later, share(one.backward, ranks) + gradient - later)
            later += (one.own + one.logits).on(layout)
        logits = sum(one.logits.on(layout) for one in held)
        return StageBytes(tuple(by_kind.items()), sum(by_kind.values()), logits, peak)

    def _largest_gradient(self, kind: str, layout: Layout) -> int:
        """Of the weights of one op, as autograd makes it before it is added up."""
        if kind not in self._sizes:
            self._sizes[kind] = tuple(_weights_of(step) for step in self._examples[kind].steps)
        width = BYTES[self.spec.precision.parameters]
        return max((some.dense_on(layout) + some.experts_on(layout)) * width for some in self._sizes[kind])

    def elements(self, parts: Iterable[int]) -> Elements:
        """Parameters of some parts with those that they borrow, each once."""
        found: dict[str, Parameter] = {}
        for index in parts:
            found.update(self.parts[index].parameters)
            found.update(self.parts[index].borrowed)
        return self._sum(found)

    def _sum(self, parameters: Mapping[str, Parameter]) -> Elements:
        for name, parameter in parameters.items():
            if name not in self._parameters:
                self._parameters[name] = elements([parameter])
        return sum((self._parameters[name] for name in parameters), Elements())

    def _structures(self, layout: Layout, batch: int, stages: Stages) -> tuple[_Structure, ...]:
        """Ranks that differ in what they hold, whatever the sizes."""
        count = layout.micro_batches(batch)
        key = (layout.schedule, layout.pp, layout.vpp, count, stages)
        if key not in self._roles:
            together: dict[tuple[object, ...], _Structure] = {}
            for rank in range(layout.pp):
                held = most_held(layout.schedule, layout.pp, layout.vpp, count, rank)
                one = self._structure(layout, stages, rank, held)
                same = (one.kinds, one.elements, one.in_flight)
                known = together.get(same)
                together[same] = one if known is None else replace(known, ranks=(*known.ranks, rank))
            self._roles[key] = tuple(together.values())
        return self._roles[key]

    def _structure(self, layout: Layout, stages: Stages, rank: int, held: InFlight) -> _Structure:
        own = [stages[stage] for stage in layout.stages(rank)]
        kinds = tuple(tuple(self.parts[index].kind for index in stage) for stage in own)
        everything = [index for stage in own for index in stage]
        largest = max((self._sum(self.parts[index].parameters) for index in everything), key=Elements.total)
        names = tuple(self.parts[index].name for index in everything)
        return _Structure((rank,), names, kinds, self.elements(everything), largest, held)

    def _amounts(self, layout: Layout, structure: _Structure, working: bool = True) -> dict[str, int]:
        """Bytes by line, activations in one."""
        width = BYTES[self.spec.precision.parameters]
        dense, experts = structure.elements.dense_on(layout), structure.elements.experts_on(layout)
        replicas, copies = layout.dp * layout.cp * layout.duplicates, layout.edp * layout.duplicates
        sharded = share(dense, replicas) + share(experts, copies)
        kept = (dense + experts, sharded)
        amounts = {
            name: each * kept[layout.zero >= sharded_from]
            for name, each, sharded_from in _state_widths(self.spec.precision)
        }
        if layout.zero == 3:  # the part that runs, and the next one on its way
            largest = structure.largest.dense_on(layout) + structure.largest.experts_on(layout)
            amounts[GATHERED] = 2 * width * largest
        stages = [self.stage(kinds, layout) for kinds in structure.kinds]
        fullest = _fullest(structure.in_flight, stages)
        amounts[ACTIVATIONS] = sum(count * one.activations for count, one in zip(fullest, stages, strict=True))
        amounts[LOGITS] = sum(count * one.logits for count, one in zip(fullest, stages, strict=True))
        amounts[WORKING] = max(one.working for one in stages) if working else 0
        if layout.pp > 1:
            amounts[TRANSFERS] = TRANSFERRED * self._hidden_bytes(layout)
        reserved = ceil(sum(amounts.values()) * (RESERVE.value - 1))
        return amounts | {ALLOCATOR: reserved} | self._outside(layout.world > 1, layout.ep > 1)

    def _outside_bytes(self, several: bool, exchanges: bool) -> int:
        key = (several, exchanges)
        if key not in self._known_outside:
            self._known_outside[key] = sum(self._outside(several, exchanges).values())
        return self._known_outside[key]

    def _outside(self, several: bool, exchanges: bool) -> dict[str, int]:
        """Bytes that PyTorch's allocator knows nothing of: on one of several GPUs, with tokens for others' experts."""
        outside = {CUDA: round(CONTEXT.value)}
        if several:
            outside[COLLECTIVES] = round(NCCL.value)
        if exchanges:
            outside[EXPERT_BUFFERS] = round(EXPERT_BUFFER.value * self.spec.hidden_size * BYTES["bf16"])
        return outside

    def least(self, layout: Layout, zero: int) -> float:
        """Bytes that the fullest rank cannot fall below: parameters spread evenly over the ranks, no activations."""
        dense, experts = self._everything.dense_on(layout), self._everything.experts_on(layout)
        whole = layout.duplicates * (dense + experts)
        sharded = dense / (layout.dp * layout.cp) + experts / layout.edp
        widths = _state_widths(self.spec.precision)
        state = sum(each * (sharded if zero >= sharded_from else whole) for _, each, sharded_from in widths)
        return RESERVE.value * state / layout.pp + self._outside_bytes(layout.world > 1, layout.ep > 1)

    @cached_property
    def sharded_bytes(self) -> int:
        """Of all parameters with their state: what the ranks hold together where nothing is held twice."""
        return self._everything.total() * sum(each for _, each, _ in _state_widths(self.spec.precision))

    @cached_property
    def _everything(self) -> Elements:
        return self.elements(range(len(self.parts)))

    def _hidden_bytes(self, layout: Layout) -> int:
        """The hidden states of one micro-batch on one rank."""
        tokens = layout.micro_batch * self.spec.workload.sequence_length
        return share(tokens * self.spec.hidden_size * BYTES[self.spec.precision.parameters], layout.cp * layout.tp)

    def _lines(self, layout: Layout, structure: _Structure) -> Iterator[Line]:
        for name, size in self._amounts(layout, structure).items():
            if name == ACTIVATIONS:
                yield from self._activation_lines(layout, structure)
            elif name in ASSUMED:
                yield Line(name, size, ASSUMED[name].provenance, ASSUMED[name].source)
            elif size:
                yield Line(name, size, "derived", SOURCES[name], structure.names)

    def _activation_lines(self, layout: Layout, structure: _Structure) -> Iterator[Line]:
        """One line for each kind of part."""
        stages = [self.stage(kinds, layout) for kinds in structure.kinds]
        fullest = _fullest(structure.in_flight, stages)
        totals: dict[str, int] = {}
        for count, one in zip(fullest, stages, strict=True):
            for kind, size in one.by_kind if count else ():
                totals[kind] = totals.get(kind, 0) + count * size
        in_flight = ", ".join(
            f"{count} of stage {stage}" for count, stage in zip(fullest, layout.stages(structure.ranks[0]), strict=True)
        )
        for kind, size in totals.items():
            held = self.held_on(kind, layout)
            tensors = tuple(_describe(one) for one, _ in (*held.storages, *held.shared) if not is_logits(one))
            yield Line(f"{ACTIVATIONS}{kind}", size, "derived", f"micro-batches in flight: {in_flight}", tensors)


@dataclass(frozen=True)
class _Structure:
    """What a rank holds before anyone asks for sizes."""

    ranks: tuple[int, ...]
    names: tuple[str, ...]
    """Of the parts of the first of the ranks."""
    kinds: tuple[tuple[str, ...], ...]
    """Of each stage, the kinds of its parts."""
    elements: Elements
    largest: Elements
    """Of the part with most parameters."""
    in_flight: InFlight


def _state_widths(precision: Precision) -> tuple[tuple[str, int, int], ...]:
    """Lines of a parameter's state, bytes for each number, and the ZeRO stage that shards it."""
    optimizer = precision.optimizer
    master = BYTES[optimizer.master] if precision.parameters != "fp32" else 0
    return (
        (WEIGHTS, BYTES[precision.parameters], 3),
        (GRADIENTS, BYTES[optimizer.gradients], 2),
        (MASTER, master, 1),
        (MOMENTS, 2 * BYTES[optimizer.moments], 1),
    )


InFlight = tuple[tuple[int, ...], ...]
"""Micro-batches of each stage that a rank holds at once; every moment that no other one exceeds."""

ENOUGH = 4
"""Micro-batches for each pipeline rank after which no schedule holds more than before."""


@lru_cache(maxsize=4096)
def most_held(schedule: Schedule, pp: int, vpp: int, micro_batches: int, rank: int) -> InFlight:
    """What a rank holds at its fullest, stages in the order of the model."""
    count = min(micro_batches, ENOUGH * pp)
    stages = stages_of_rank(schedule, pp, vpp, rank)
    return tuple(tuple(held[stage] for stage in stages) for held in holdings(actions(schedule, pp, vpp, count), rank))


def _fullest(in_flight: InFlight, stages: Sequence[StageBytes]) -> tuple[int, ...]:
    """The moment that costs most."""
    return max(in_flight, key=lambda counts: sum(n * one.kept for n, one in zip(counts, stages, strict=True)))


def _shared(parts: Sequence[Part]) -> frozenset[Storage]:
    """What more than one part reads."""
    readers: dict[Storage, str] = {}
    shared = set()
    for part in parts:
        for step in part.steps:
            for one in step.inputs:
                if one is not None and readers.setdefault(one, part.name) != part.name:
                    shared.add(one)
    return frozenset(shared)


def _weights_of(step: Step) -> Elements:
    return elements(parameter.substitute(step.sizes) for parameter in step.node.op.parameters())


def _describe(storage: Storage) -> str:
    return f"{storage.place} {storage.type.shape_text()} {storage.type.dtype}"
