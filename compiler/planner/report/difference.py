"""What differs between two plans, read from their files: decisions, the memory of each role, times, alternatives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dsc.compiler.facts.diff import Changed
from dsc.compiler.planner.report.plan import ranks_text
from dsc.spec.errors import DscError, Finding, Position
from dsc.spec.text import decode

PlanFile = Mapping[str, Any]
A_PLAN = re.compile(r"^hardware_sha256: [0-9a-f]{64}$", re.MULTILINE)
FULLEST = "fullest GPU"
SECTIONS = ("plan", "memory", "time", "rejected")


def read_plan(path: str) -> PlanFile | None:
    """What a plan.yaml says; None for any other file, and for what is no file. Raises DscError for a broken one."""
    if not Path(path).is_file():
        return None
    data = Path(path).read_bytes()
    if not A_PLAN.search(data.decode("utf-8", "replace")):
        return None
    try:
        plan = YAML(typ="safe", pure=True).load(decode(data, path))
    except (YAMLError, RecursionError) as error:
        raise _broken(path, error) from None
    if not isinstance(plan, dict) or not {"mode", "placement", "memory"} <= plan.keys():
        message = "a plan has `mode`, `placement` and `memory`"
        raise DscError([Finding("DSC006", message, help="write it again: dsc plan SPEC -o FILE", position=_top(path))])
    return plan


def _broken(path: str, error: Exception) -> DscError:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    position = Position(path, mark.line + 1, mark.column + 1) if mark else _top(path)
    said = str(error.problem) if isinstance(error, MarkedYAMLError) else "it is nested too deep"
    help = "write it again: dsc plan SPEC -o FILE"
    return DscError([Finding("DSC003", f"this is not YAML: {said}", help=help, position=position)])


def _top(path: str) -> Position:
    return Position(path, 1, 1)


def plan_changes(first: PlanFile, second: PlanFile) -> dict[str, list[Changed]]:
    """Of each of SECTIONS, the entries whose values differ, in the order of the files."""
    ours, theirs = _sections(first), _sections(second)
    if _fullest(first)["ranks"] == _fullest(second)["ranks"]:  # said once is enough
        for memory in (ours["memory"], theirs["memory"]):
            for name in [one for one in memory if one.startswith(FULLEST)]:
                del memory[name]
    return {
        section: [
            Changed(name, ours[section].get(name), theirs[section].get(name))
            for name in dict.fromkeys([*ours[section], *theirs[section]])
            if ours[section].get(name) != theirs[section].get(name)
        ]
        for section in SECTIONS
    }


def _sections(plan: PlanFile) -> dict[str, dict[str, Any]]:
    """Every entry under a name that the other plan would give it, too."""
    rest = {key: value for key, value in plan.items() if key not in ("memory", "sources", "time", "rejected")}
    return {
        "plan": dict(_flat(rest, ())),
        "memory": dict(_memory(plan)),
        "time": dict(_flat(plan.get("time") or {}, ())),
        "rejected": {one["change"]: f"{one['binds']}: {one['reason']}" for one in plan.get("rejected") or ()},
    }


def _memory(plan: PlanFile) -> Iterator[tuple[str, Any]]:
    """The fullest GPU, whichever it is, and every role by its ranks."""
    yield from _flat(_sums(_fullest(plan)), (FULLEST,))
    for role in plan["memory"]:
        ranks = ranks_text(role["ranks"])
        yield from _flat(_sums(role), (ranks,))
        yield from _flat(role["lines"], (f"{ranks}, lines",))
        yield f"{ranks}: source", role.get("source")
    for name, source in (plan.get("sources") or {}).items():
        yield f"{name}: source", source


def _fullest(plan: PlanFile) -> dict[str, Any]:
    found: dict[str, Any] = max(plan["memory"], key=lambda role: role["total"])
    return found


def _sums(role: Mapping[str, Any]) -> dict[str, Any]:
    return {name: role[name] for name in role if name not in ("ranks", "lines", "source")}


def _flat(value: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Leaves by their path. Of lines of a ledger the amount is a leaf, and where it comes from is another."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, (*name, str(key)))
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        for one in value:
            yield ": ".join((*name[:-1], one["name"])), one.get("seconds")
            yield ": ".join((*name[:-1], one["name"], "source")), f"{one['provenance']}: {one['source']}"
    elif isinstance(value, list):
        yield ".".join(name), ", ".join(map(_text, value))
    else:
        yield (": ".join(name) if " " in "".join(name) else ".".join(name)), value


def _text(item: Any) -> str:
    return f"[{', '.join(map(_text, item))}]" if isinstance(item, list) else str(item)
