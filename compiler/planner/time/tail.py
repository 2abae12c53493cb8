"""Seconds of what a step does once: gradients across data parallelism, the optimizer, parameters back, their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import Part
from dsc.compiler.planner.parts.shard import Elements, added, coded
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.parts.widths import BYTES
from dsc.compiler.planner.pipeline.simulate import StageTimes
from dsc.compiler.planner.time.ops import CODES
from dsc.compiler.planner.time.sharing import stage_sharing
from dsc.compiler.planner.time.traffic import Communication
from dsc.spec.precision import Precision

ENCODE = "codes of weights"
REDUCE, UPDATE, GATHER = "gradients across data parallelism", "optimizer", "parameters across data parallelism"
NOTHING = Elements()


class Tail:
    """Of one model on one machine."""

    def __init__(
        self,
        parts: Sequence[Part],
        elements: Mapping[str, Elements],
        communication: Communication,
        hardware: Hardware,
        precision: Precision,
        encodes: bool = True,
    ) -> None:
        """`encodes`: codes of weights that layouts keep are made here, once a step."""
        self._parts = parts
        self._elements = elements
        self._communication = communication
        self._memory = hardware.cluster.hbm_bandwidth * hardware.calibration.forward["memory"].value
        self._precision = precision
        self._casting = hardware.cluster.hbm_bandwidth * hardware.calibration.forward["cast"].value
        kinds = {part.kind: part for part in parts}
        self._coded = {kind: coded(part.steps) if encodes else Elements() for kind, part in kinds.items()}
        self._everything = [added(some[part.kind] for part in parts) for some in (elements, self._coded)]
        self._longest = cache(self._longest_of)
        self._held = cache(self._held_by)

    def longest(self, layout: Layout, stages: Stages, times: Sequence[StageTimes]) -> dict[str, float]:
        """On the pipeline rank where it takes longest; `times` are those of the stages for a micro-batch.

        Without a pipeline FSDP reduces a layer's gradients beside the last micro-batch's backward, and gathers weights
        beside the next step's first forward. A pipeline's stages reduce after their last backward
        (torch.distributed.pipelining, PipelineStage.backward_maybe_with_nosync).
        """
        lines = self._alone(layout, stages)
        if layout.pp > 1 or layout.zero != 1:
            return lines
        backward = times[0].backward_input + times[0].backward_weight
        beside = self._communication.exposed
        return lines | {
            REDUCE: beside(lines[REDUCE], backward, len(stages[0])),
            GATHER: beside(lines[GATHER], times[0].forward, len(stages[0])),
        }

    def least(self, layout: Layout) -> float:
        """Seconds that it cannot take less than, however the model is split into stages: of an even share of it.

        Each line is at least proportional to what a rank holds, so the ranks' longest is no shorter than their mean's.
        """
        held, coded = (_even(some, layout) for some in self._everything)
        lines = self.of_rank(layout, held, coded)
        if layout.pp == 1 and layout.zero == 1:  # these may be hidden
            lines[REDUCE] = lines[GATHER] = 0.0
        return sum(lines.values())

    def _alone(self, layout: Layout, stages: Stages) -> dict[str, float]:
        if layout.recompute or layout.activations != "bf16" or layout.micro_batch > 1:  # which tell nothing here
            layout = replace(layout, micro_batch=1, recompute=(), activations="bf16")
        return self._longest(layout, stages)

    def _longest_of(self, layout: Layout, stages: Stages) -> dict[str, float]:
        held = self._held(stages, tuple(map(layout.stages, range(layout.pp))))
        return max((self.of_rank(layout, *one) for one in held), key=lambda lines: sum(lines.values()))

    def _held_by(self, stages: Stages, ranks: tuple[tuple[int, ...], ...]) -> tuple[tuple[Elements, Elements], ...]:
        """Parameters that the pipeline ranks hold, and those among them that become codes, each pair once."""
        kinds = [[self._parts[index].kind for stage in rank for index in stages[stage]] for rank in ranks]
        held = [
            (
                added(self._elements[kind] for kind in some),
                added(self._coded[kind] for kind in some),
            )
            for some in kinds
        ]
        return tuple(dict.fromkeys(held))

    def of_rank(self, layout: Layout, held: Elements, coded: Elements = NOTHING) -> dict[str, float]:
        """One that holds so many parameters, and makes codes of some."""
        optimizer, width = self._precision.optimizer, BYTES[self._precision.parameters]
        gradient = BYTES[optimizer.gradients]
        data = (layout.dp * layout.cp * layout.duplicates, layout.edp * layout.duplicates)
        sharing = stage_sharing(layout)._replace(dense_ranks=data[0], expert_ranks=data[1])
        dense = held.dense_shard(layout, layout.duplicates) if layout.zero else held.dense_on(layout)
        owned = dense + held.experts_on(layout) / (data[1] if layout.zero else 1)
        # gradient read; master copy and both moments read and written; parameter written
        touched = gradient + 2 * BYTES[optimizer.master] + 4 * BYTES[optimizer.moments] + width
        across = self._communication.across_data
        reduce = 0.0 if layout.zero >= 2 else across(held, gradient, sharing)
        gather = 0.0 if layout.zero == 3 else across(held, width if layout.zero else gradient, sharing)
        lines = {REDUCE: reduce, UPDATE: owned * touched / self._memory, GATHER: gather}
        if layout.keeps_codes and coded != NOTHING:
            lines[ENCODE] = (coded.dense_on(layout) + coded.experts_on(layout)) * sum(CODES) / self._casting
        return lines


def _even(some: Elements, layout: Layout) -> Elements:
    """Of each pipeline rank, less what rounding up may add to the parts of one that others share."""

    def each(count: int) -> int:
        return max(0, count * layout.duplicates // layout.pp - layout.world)

    return Elements(each(some.tensor), each(some.replicated), each(some.expert))
