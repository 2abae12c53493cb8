"""Which plan.yaml a package is compiled by: the one that was named, one beside the spec, or the package's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsc.compiler.cli.console import say

if TYPE_CHECKING:
    from dsc.compiler.planner.report.locked import LockedPlan
    from dsc.spec.model import ModelSpec

PLAN = "plan.yaml"


def plan_for(spec: ModelSpec, source: str, folder: Path, named: str | None) -> LockedPlan | None:
    """None where no plan stands there that is of this model's training.

    Beside the spec is in its folder; for a model of the zoo, in the working directory. A plan there that is another
    model's is passed over; one that does not hold any more is an error. The package's own is from the last time: where
    it does not hold, a spec that places its model is planned again.
    """
    beside = (Path(source).parent if Path(source).is_file() else Path()) / PLAN
    if named is None and not beside.is_file() and not (folder / PLAN).is_file():
        return None
    from dsc.compiler.planner.report.locked import ANOTHER, locked_plan  # takes long to import
    from dsc.spec.errors import DscError

    if named is not None:
        return locked_plan(named, spec, given=True)
    if beside.is_file():
        try:
            return locked_plan(beside.as_posix(), spec)
        except DscError as error:
            if error.findings[0].code != ANOTHER:
                raise
            say(f"note: not read: {error.findings[0].message}", stderr=True)
    if not (folder / PLAN).is_file():
        return None
    try:
        return locked_plan((folder / PLAN).as_posix(), spec)
    except DscError as error:
        if spec.placement is None or spec.cluster is None:
            raise
        say(f"note: planned again: {error.findings[0].message}", stderr=True)
        return None
