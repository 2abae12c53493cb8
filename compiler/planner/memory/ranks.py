"""What pipeline ranks hold before anyone asks for sizes: parts, parameters, and micro-batches in flight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dsc.compiler.graph.op import Parameter
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.parts.parts import Part
from dsc.compiler.planner.parts.shard import Elements, added, coded, elements
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.pipeline.schedule import Schedule, actions, fullest_moments

InFlight = tuple[tuple[int, ...], ...]
"""Micro-batches of each stage that a rank holds at once, then those of each whose weights' gradients wait for their W;
every moment that no other one exceeds."""

FALLING: tuple[Schedule, ...] = ("1f1b", "interleaved")
"""Schedules whose ranks never hold more of their first, second, ... stage than the rank before holds of its own: they
run fewer forwards ahead of their backwards, in the same order."""
ENOUGH = 2
"""Micro-batches for each pipeline rank after which no schedule holds more than before."""


@lru_cache(maxsize=4096)
def most_held(schedule: Schedule, pp: int, vpp: int, micro_batches: int, rank: int) -> InFlight:
    """What a rank holds at its fullest, stages in the order of the model."""
    if schedule == "1f1b":  # its warm-up, and one more
        return ((min(micro_batches, pp - rank), 0),)
    return fullest_moments(actions(schedule, pp, vpp, min(micro_batches, ENOUGH * pp))[rank])


@dataclass(frozen=True, eq=False)  # each is made once, and is a key of what is known of it
class RankContent:
    """Of ranks that differ in nothing of it."""

    ranks: tuple[int, ...]
    names: tuple[str, ...]
    """Of the parts of the first of the ranks."""
    kinds: tuple[tuple[str, ...], ...]
    """Of each stage, the kinds of its parts."""
    elements: Elements
    largest: Elements
    """Of the part with most parameters."""
    of_stage: Elements
    """Of the stage with most parameters."""
    coded: Elements
    """Of weights that products read as FP8 codes."""
    in_flight: InFlight
    handed_on: tuple[int, ...]
    """Of each stage, whether a micro-batch in flight holds what it handed on; less what the stage before it holds."""
    senders: int
    """Stages that send gradients to another rank."""


class _Run(NamedTuple):
    """Of parts that make a stage."""

    kinds: tuple[str, ...]
    elements: Elements
    """What they borrow left out."""
    largest: Elements
    coded: Elements
    borrowers: tuple[int, ...]
    """Those that use parameters of others."""


class RankContents:
    """Of every rank of a pipeline."""

    def __init__(self, parts: Sequence[Part], copies: bool = True) -> None:
        """`copies`: a stage has one of its own of what another stage of its rank has too. DeepSeek's engine has a
        single one there (DeepSeek-V3, section 3.2.3)."""
        self._parts, self._copies = parts, copies
        self._own = [elements(part.parameters.values()) for part in parts]
        by_kind = {kind: coded(part.steps) for kind, part in {part.kind: part for part in parts}.items()}
        self._coded = [by_kind[part.kind] for part in parts]
        self._known: dict[tuple[object, ...], tuple[RankContent, ...]] = {}
        self._runs: dict[tuple[int, ...], _Run] = {}
        self._heavy: dict[tuple[object, ...], tuple[RankContent, ...]] = {}

    def heaviest(self, layout: Layout, batch: int, stages: Stages) -> tuple[RankContent, ...]:
        """Some of `of_ranks`, the fullest among them: of ranks that hold the same parts the first, where no rank has
        more in flight than the one before it."""
        if layout.schedule not in FALLING:
            return self.of_ranks(layout, batch, stages)
        count = layout.micro_batches(batch)
        key = (layout.schedule, layout.pp, layout.vpp, count, stages)
        if key not in self._heavy:
            first: dict[tuple[object, ...], int] = {}
            for rank in range(layout.pp):
                runs = [self._run(stages[stage]) for stage in layout.stages(rank)]
                first.setdefault(tuple((run.kinds, run.borrowers) for run in runs), rank)
            self._heavy[key] = tuple(
                self._of_rank(layout, stages, rank, most_held(layout.schedule, layout.pp, layout.vpp, count, rank))
                for rank in first.values()
            )
        return self._heavy[key]

    def of_ranks(self, layout: Layout, batch: int, stages: Stages) -> tuple[RankContent, ...]:
        """Ranks that hold the same, together."""
        count = layout.micro_batches(batch)
        key = (layout.schedule, layout.pp, layout.vpp, count, stages)
        if key not in self._known:
            together: dict[tuple[object, ...], RankContent] = {}
            for rank in range(layout.pp):
                held = most_held(layout.schedule, layout.pp, layout.vpp, count, rank)
                one = self._of_rank(layout, stages, rank, held)
                same = (one.kinds, one.elements, one.in_flight, one.handed_on, one.senders)
                known = together.get(same)
                together[same] = one if known is None else replace(known, ranks=(*known.ranks, rank))
            self._known[key] = tuple(together.values())
        return self._known[key]

    def _of_rank(self, layout: Layout, stages: Stages, rank: int, held: InFlight) -> RankContent:
        own = [stages[stage] for stage in layout.stages(rank)]
        runs = [self._run(stage) for stage in own]
        everything = tuple(index for stage in own for index in stage)
        with_lent = [
            self._with_lent(run.elements, stage) if run.borrowers else run.elements
            for run, stage in zip(runs, own, strict=True)
        ]
        numbers = layout.stages(rank)
        return RankContent(
            (rank,),
            tuple(self._parts[index].name for index in everything),
            tuple(run.kinds for run in runs),
            added(with_lent) if self._copies else self._together(runs, everything),
            max((run.largest for run in runs), key=Elements.total),
            max(with_lent, key=Elements.total),
            added(run.coded for run in runs),
            held,
            tuple((stage < layout.chunks - 1) - (stage - 1 in numbers) for stage in numbers),
            sum(stage > 0 and stage - 1 not in numbers for stage in numbers),
        )

    def _run(self, parts: tuple[int, ...]) -> _Run:
        """Of a stage; layouts have many in common."""
        if parts not in self._runs:
            own = [self._own[index] for index in parts]
            self._runs[parts] = _Run(
                tuple(self._parts[index].kind for index in parts),
                added(own),
                max(own, key=Elements.total),
                added(self._coded[index] for index in parts),
                tuple(index for index in parts if self._parts[index].borrowed),
            )
        return self._runs[parts]

    def elements(self, parts: Iterable[int]) -> Elements:
        """Parameters of some parts with those that they borrow, each once."""
        held = tuple(parts)
        return self._with_lent(added(self._own[index] for index in held), held)

    def _together(self, runs: Sequence[_Run], held: tuple[int, ...]) -> Elements:
        own = added(run.elements for run in runs)
        return self._with_lent(own, held) if any(run.borrowers for run in runs) else own

    def _with_lent(self, own: Elements, held: tuple[int, ...]) -> Elements:
        """With what such parts borrow of other stages."""
        found: dict[str, Parameter] = {}
        for index in held:
            found.update(self._parts[index].borrowed)
        lent = [one for name, one in found.items() if not any(name in self._parts[index].parameters for index in held)]
        return own + elements(lent) if lent else own
