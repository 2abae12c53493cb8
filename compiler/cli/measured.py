"""A model with its facts, as stats, diff and zoo show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dsc.compiler.driver import Program, build
from dsc.compiler.facts.breakdown import Breakdown, break_down
from dsc.compiler.facts.stats import Stats, compute_stats
from dsc.spec.checks import check
from dsc.spec.errors import DscError
from dsc.spec.loader import load


@dataclass(frozen=True)
class Measured:
    program: Program
    stats: Stats
    parts: Breakdown

    def record(self) -> dict[str, object]:
        """The contract's keys, and the breakdowns."""
        return {
            **asdict(self.stats),
            "parameters_by_part": self.parts.parameters,
            "active_parameters_by_part": self.parts.active,
            "training_flops_per_token_by_part": self.parts.training_flops_per_token,
        }


def measure(source: str, context: int | None = None) -> Measured:
    """With sequences of another length than the spec's, if one is given."""
    loaded = load(source)
    if context is not None:
        workload = loaded.workload.model_copy(update={"sequence_length": context})
        loaded = loaded.model_copy(update={"workload": workload})
        if findings := check(loaded):
            raise DscError(findings)
    program = build(loaded)
    spec, graph = program.spec, program.training
    return Measured(program, compute_stats(spec, graph), break_down(spec, graph))
