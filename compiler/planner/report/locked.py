"""A plan.yaml as input: whether it holds for a spec, and what it decides."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsc.compiler.planner.layout.layout import TRIVIAL, Layout, global_batch
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.machine.hardware import Hardware, hardware
from dsc.compiler.planner.report.difference import read_plan
from dsc.compiler.planner.report.hashes import hardware_hash, spec_hash
from dsc.compiler.planner.report.write import VERSION
from dsc.spec.cluster import Machines
from dsc.spec.errors import Code, DscError, Finding, Position
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement
from dsc.spec.words import shown

PLAN = "plan.yaml"
ANOTHER: Code = "DSC071"
"""A plan of something else than training this model."""
STALE: Code = "DSC072"
"""A plan of this model that does not hold any more."""


@dataclass(frozen=True)
class LockedPlan:
    """A plan that holds for a spec."""

    path: str
    text: str
    spec: ModelSpec
    """On the plan's machines."""
    layout: Layout

    def dispatching(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the plan's way to other ranks' experts, for another way is another graph to plan."""
        pins = (spec.placement or Placement()).model_copy(update={"dispatch": self.layout.dispatch})
        return spec.model_copy(update={"placement": pins})


def locked_plan(path: str, spec: ModelSpec, given: bool = False) -> LockedPlan:
    """The plan in a file. Raises DscError where it is none, of something else (DSC071), or does not hold (DSC072).

    Whether its machines may be others than the spec's is for `given` to say: that the user named this very file.
    """
    plan = read_plan(path)
    if plan is None:
        raise DscError([_finding(ANOTHER, path, "", "is no plan of dsc", f"dsc plan SPEC -o {path}")])
    text = Path(path).read_text(encoding="utf-8")
    if reason := _of_another(plan, spec):
        raise DscError([_finding(ANOTHER, path, text, reason[1], "give the plan of this spec's training", reason[0])])
    again = f"plan again: dsc plan SPEC -o {path}"
    if plan.get("version") != VERSION:
        said = f"is of version {plan.get('version')} of the format; this dsc reads version {VERSION}"
        raise DscError([_finding(STALE, path, text, said, again, "version")])
    if plan.get("spec_sha256") != spec_hash(spec):
        said = f"was made for {spec.name} as its spec was before"
        raise DscError([_finding(STALE, path, text, said, again, "spec_sha256")])
    machines = _machines(plan, spec, path, text, given)
    placed = spec.model_copy(update={"cluster": machines})
    layout = _layout(plan, path, text)
    for reason_why in _breaks(layout, placed, hardware(machines)):
        raise DscError([_finding(STALE, path, text, reason_why, again, "placement")])
    return LockedPlan(path, text, placed, layout)


def _of_another(plan: Any, spec: ModelSpec) -> tuple[str, str] | None:
    """The key that says so, and what it says."""
    if plan.get("spec") != spec.name:
        return "spec", f"is of {shown(str(plan.get('spec')))}, and this spec is {spec.name}"
    if plan.get("mode") != "train":
        return "mode", f"is for {shown(str(plan.get('mode')))}, not for training"
    return None


def _machines(plan: Any, spec: ModelSpec, path: str, text: str, given: bool) -> Machines:
    """The plan's, which are the spec's where it names some."""
    kind, gpus = str(plan.get("hardware")), int(plan["world_size"])
    found = None if spec.cluster is None else hardware(spec.cluster)
    if found is not None and (found.cluster.name, found.gpus) == (kind, gpus):
        machines = spec.cluster
        assert machines is not None
    elif found is not None and not given:
        said = f"is for {gpus:,} x {kind}, and the spec names {found.gpus:,} x {found.cluster.name}"
        help = f"plan again: dsc plan SPEC -o {path}; or compile for the plan's machines: --plan {path}"
        raise DscError([_finding(STALE, path, text, said, help, "hardware")])
    else:
        whole = hardware(Machines(kind=kind))
        nodes, rest = divmod(gpus, whole.gpus)
        machines = Machines(kind=kind, gpus=gpus) if rest else Machines(kind=kind, nodes=nodes)
    if plan.get("hardware_sha256") != hardware_hash(hardware(machines).cluster):
        help = f"plan again: dsc plan SPEC -o {path}"
        raise DscError([_finding(STALE, path, text, f"was made with other figures of {kind}", help, "hardware_sha256")])
    return machines


def _layout(plan: Any, path: str, text: str) -> Layout:
    try:
        placement = Placement.model_validate(plan["placement"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = f"has a placement that cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DscError([_finding(STALE, path, text, said, "write it as `dsc plan` does", "placement")]) from None
    values = {field.name: getattr(placement, field.name) for field in fields(Layout)}
    values["dispatch"] = values["dispatch"] or TRIVIAL.dispatch
    if missing := [name for name, value in values.items() if value is None]:
        said = f"has a placement without {', '.join(missing)}"
        raise DscError([_finding(STALE, path, text, said, "write all of it, as `dsc plan` does", "placement")])
    return Layout(**{**values, "recompute": tuple(sorted(values["recompute"]))})


def _breaks(layout: Layout, spec: ModelSpec, machines: Hardware) -> list[str]:
    """How a layout contradicts the spec."""
    for name, pinned in spec.placement or Placement():
        chosen = getattr(layout, name)
        if pinned is not None and (tuple(sorted(pinned)) if isinstance(pinned, list) else pinned) != chosen:
            return [f"has {name} {_text(chosen)}, and the spec pins {_text(pinned)}"]
    illegal = problems(layout, spec, machines.gpus, global_batch(spec, machines.gpus))
    return [f"is impossible: {reason}" for reason in illegal]


def _text(choice: object) -> str:
    return " + ".join(choice) or "nothing" if isinstance(choice, list | tuple) else str(choice)


def _finding(code: Code, path: str, text: str, said: str, help: str, key: str = "") -> Finding:
    """At the line of a key."""
    start = re.search(rf"^{key}:", text, re.MULTILINE) if key else None
    line = text.count("\n", 0, start.start()) + 1 if start else 1
    return Finding(code, f"{path} {said}", help=help, position=Position(path, line, 1))
