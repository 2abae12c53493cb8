"""plan.yaml: a plan as a file that is reviewed, compared and edited, and whose placement can be pinned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from dsc.compiler.planner.plan import Plan, memory, placement, record

WIDTH = 1000  # of a line: one entry, one line, so that a diff shows entries
DIGITS = 6  # of a figure that was computed


def plan_yaml(plan: Plan) -> str:
    """Deterministic: the same spec and machines give the same bytes."""
    facts = record(plan)
    time, problem = facts["time"], plan.problem
    body = CommentedMap(
        spec=facts["name"],
        spec_sha256=facts["spec_sha256"],
        hardware=facts["cluster"],
        hardware_sha256=facts["hardware_sha256"],
        mode=facts["mode"],
        fits=facts["fits"],
        world_size=facts["world_size"],
        global_batch=facts["global_batch"],
        micro_batches=facts["micro_batches"],
        placement=_flow(placement(plan.layout)),
        stages=CommentedSeq(_flow(_runs(stage)) for stage in facts["stages"]),
        memory=CommentedSeq(
            CommentedMap(
                ranks=_flow(role.ranks),
                **memory(role, problem.capacity),
                lines=CommentedSeq(_flow(line) for line in facts["memory"][index]["lines"]),
            )
            for index, role in enumerate(plan.roles)
        ),
        time=CommentedMap(
            **{key: _rounded(time[key]) for key in time if key != "lines"},
            lines=CommentedSeq(_flow(line) for line in time["lines"]),
        ),
        rejected=CommentedSeq(
            _flow({key: one[key] for key in ("change", "binds", "reason")}) for one in facts["rejected"]
        ),
        largest_saving=facts["largest_saving"],
        sensitivity=facts["sensitivity"] and _flow(facts["sensitivity"]),
    )
    body.yaml_set_start_comment(
        f"Plan of {facts['name']} on {problem.hardware.nodes} nodes of {facts['cluster']}. "
        f"Regenerate: dsc plan {facts['name']} -o FILE\n"
        f"{plan.found.legal:,} ways to share the GPUs are legal, {plan.found.simulated} of them were simulated."
    )
    _say(body, "placement", "under this key in the spec, it is pinned")
    _say(body, "stages", "of the pipeline, and the parts of the model on each")
    _say(body, "memory", "bytes of one GPU, for pipeline ranks that hold alike")
    _say(
        body, "time", f"of a step, in seconds on the busiest rank; within {time['uncertainty']:.0%} on published steps"
    )
    _say(body, "rejected", "one choice away, and what speaks against it")
    _say(body, "sensitivity", "the next better plan, and the memory that a GPU lacks for it")
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(body, stream)
    return stream.getvalue()


def _say(body: CommentedMap, key: str, text: str) -> None:
    body.yaml_set_comment_before_after_key(key, before=f"\n{text}")


def _flow(value: Mapping[str, Any] | Sequence[Any]) -> CommentedMap | CommentedSeq:
    """On one line."""
    made: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        made = CommentedMap((key, _inner(item)) for key, item in value.items())
    else:
        made = CommentedSeq(_inner(item) for item in value)
    made.fa.set_flow_style()
    return made


def _inner(item: Any) -> Any:
    return _flow(item) if isinstance(item, Mapping | list | tuple) else _rounded(item)


def _rounded(item: Any) -> Any:
    return float(f"{item:.{DIGITS}g}") if isinstance(item, float) else item


def _runs(parts: Sequence[str]) -> list[str]:
    """layers.3, layers.4, layers.5 as layers.3-5."""
    runs = []
    for stem, group in groupby(parts, key=lambda part: part.rpartition(".")[0] if part[-1].isdigit() else part):
        members = list(group)
        first, last = members[0], members[-1].rpartition(".")[2]
        runs.append(first if len(members) == 1 else f"{stem}.{first.rpartition('.')[2]}-{last}")
    return runs
