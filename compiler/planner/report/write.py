"""plan.yaml: a plan as a file that is reviewed, compared and edited, and whose placement can be pinned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.report.plan import NOTHING, Plan, runs, searched_text, where
from dsc.compiler.planner.report.record import placement, record
from dsc.compiler.planner.report.serving_record import serving_record
from dsc.compiler.planner.serving.deployment import ServingFound
from dsc.compiler.planner.serving.problem import ServingProblem

WIDTH = 1000  # of a line: one entry, one line, so that a diff shows entries
VERSION = 1  # of the file: of its keys and what they mean
DIGITS = 6  # of a figure that was computed
CHOICES = ("change", "binds", "reason")
LINES = ("name", "seconds", "provenance", "source")


def plan_yaml(plan: Plan) -> str:
    """Of training. Deterministic: the same spec and machines give the same bytes."""
    facts = record(plan)
    time, device = facts["time"], plan.problem.hardware.device
    body = CommentedMap(
        **_heading(facts),
        global_batch=facts["global_batch"],
        micro_batches=facts["micro_batches"],
        placement=_flow(placement(plan.layout)),
        stages=CommentedSeq(_flow(runs(stage)) for stage in facts["stages"]),
        memory=_memory(facts),
        sources=_sources(facts),
        time=CommentedMap(
            **{key: _rounded(time[key]) for key in time if key != "lines"},
            lines=_flows(time["lines"], LINES),
        ),
        rejected=_flows(facts["rejected"], CHOICES),
        largest_saving=facts["largest_saving"],
        sensitivity=facts["sensitivity"] and _flow(facts["sensitivity"]),
    )
    body.yaml_set_start_comment(f"{_title(facts, plan.problem.hardware)}\n{_origin(plan)}")
    _say(body, "placement", "what `dsc compile` reads; in the spec, under this key, it is pinned")
    _say(body, "stages", "of the pipeline, and the parts of the model on each")
    _say(body, "memory", f"bytes of one {device}, for pipeline ranks that hold alike; sums, then what they are made of")
    _say(body, "sources", "of the lines: derived from the graph, measured or assumed")
    _say(
        body, "time", f"of a step, in seconds on the busiest rank; within {time['uncertainty']:.0%} on published steps"
    )
    _say(body, "rejected", "one choice away, and what speaks against it")
    _say(body, "sensitivity", f"the next better plan, and the memory that a {device} lacks for it")
    return text_of(body)


def serving_yaml(found: ServingFound) -> str:
    """Of prefill or decode; as deterministic."""
    body = serving_body(found)
    body.yaml_set_start_comment(_title(serving_record(found), found.problem.hardware, f"{asked(found.problem)} "))
    return text_of(body)


def serving_body(found: ServingFound, indent: int = 0) -> CommentedMap:
    facts = serving_record(found)
    placed, time = facts["expert_placement"], facts["time"]
    body = CommentedMap(
        **_heading(facts),
        context_length=facts["context_length"],
        sequences=_flow(facts["sequences"]),
        placement=_flow({name: facts["mesh"][name] for name in ("tp", "dp", "ep")}),
        experts=facts["experts"] and _flow(facts["experts"]),
        **({"expert_placement": CommentedSeq(map(_flow, placed))} if placed else {}),
        weights=facts["weights"],
        cache=_flow(facts["cache"]),
        arena=facts["arena"] and _flow(facts["arena"]),
        **({"acceptance": facts["acceptance"]} if facts["acceptance"] is not None else {}),
        **({"not_emitted": CommentedSeq(facts["not_emitted"])} if facts["not_emitted"] else {}),
        **({"time": _serving_time(time)} if time else {}),
        memory=_memory(facts),
        sources=_sources(facts),
        rejected=_flows(facts["rejected"], CHOICES),
    )
    for key, text in SERVING_SAYS.items():
        if key in body:
            _say(body, key, text, indent)
    return body


SERVING_SAYS = {
    "sequences": "at once, at this context length: in the cache of a group of tp GPUs, and of them all",
    "placement": "under this key in the spec, it is pinned",
    "experts": "of each layer; which are doubled is decided by their load",
    "expert_placement": "by load: the busiest GPU over the mean, and the experts on each GPU",
    "cache": "of one GPU; a sequence has its pages on every GPU of its group",
    "arena": "of one step: every intermediate value at a fixed offset",
    "acceptance": "of the first guess of multi-token prediction, as was given",
    "not_emitted": "what the package has no code for yet",
    "time": "of a step, and what follows; dollars at the price that was given",
    "memory": "bytes of one GPU; all are alike; sums, then what they are made of",
    "sources": "of the lines: derived from the graph, measured or assumed",
    "rejected": "one choice away, and what comes of it",
}


def _serving_time(time: Mapping[str, Any]) -> CommentedMap:
    said = {key: value for key, value in time.items() if key != "lines" and value is not None}
    return CommentedMap(
        **{key: inner(value) for key, value in said.items()},
        lines=_flows(time["lines"], LINES),
    )


TARGETS = {"prefill": "--target-ttft", "decode": "--target-tpot"}


def asked(problem: ServingProblem, *others: ServingProblem) -> str:
    """The options of `dsc plan` that ask for this; of others, for their targets and prompts too."""
    context = others[0].context if others else problem.context
    given = [f"--mode {problem.phase} --context {context}"]
    if problem.redundant:
        given.append(f"--redundant {problem.redundant}")
    if problem.loads:
        given.append("--loads LOADS")
    for one in (*others, problem):
        if one.target is not None:
            given.append(f"{TARGETS[one.phase]} {1e3 * one.target:g}")
    if problem.acceptance is not None:
        given.append(f"--acceptance {problem.acceptance:g}")
    if problem.price is not None:
        given.append(f"--price {problem.price:g}")
    return " ".join(given)


def _title(facts: Mapping[str, Any], machines: Hardware, options: str = "") -> str:
    whole = machines.gpus == machines.of_nodes(machines.nodes).gpus
    count = f"--nodes {machines.nodes}" if whole else f"--gpus {machines.gpus}"
    command = f"dsc plan {facts['name']} {options}--cluster {facts['cluster']} {count} -o FILE"
    return f"Plan of {facts['name']} on {where(machines)}. Regenerate: {command}"


def _origin(plan: Plan) -> str:
    """How the placement came about."""
    found = plan.found
    if not found.legal:
        return "Its placement was given, and not searched for."
    return f"{searched_text(found)}."


def _heading(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "spec": facts["name"],
        "spec_sha256": facts["spec_sha256"],
        "hardware": facts["cluster"],
        "hardware_sha256": facts["hardware_sha256"],
        "mode": facts["mode"],
        "fits": facts["fits"],
        "nodes": facts["nodes"],
        "world_size": facts["world_size"],
    }


def _memory(facts: Mapping[str, Any]) -> CommentedSeq:
    """The ledger of each role; where its lines come from stands once, in `sources`, unless roles differ in it."""
    shared = _sources(facts)
    roles = CommentedSeq()
    for role in facts["memory"]:
        own = dict.fromkeys(line["source"] for line in role["lines"] if line["name"] not in shared)
        entry = CommentedMap(ranks=_flow(role["ranks"]))
        entry.update({name: role[name] for name in role if name not in ("ranks", "lines")})
        entry["lines"] = CommentedMap((line["name"], line["bytes"]) for line in role["lines"])
        if own:
            entry["source"] = "; ".join(own)
        roles.append(entry)
    return roles


def _sources(facts: Mapping[str, Any]) -> CommentedMap:
    """Of the lines that have the same in all roles."""
    found: dict[str, dict[str, None]] = {}
    for role in facts["memory"]:
        for line in role["lines"]:
            found.setdefault(line["name"], {})[f"{line['provenance']}: {line['source']}"] = None
    return CommentedMap((name, next(iter(texts))) for name, texts in found.items() if len(texts) == 1)


def _flows(entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> CommentedSeq:
    """One entry, one line."""
    return CommentedSeq(_flow({key: one[key] for key in keys if key in one}) for one in entries)


def text_of(body: CommentedMap) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(body, stream)
    return stream.getvalue()


def _say(body: CommentedMap, key: str, text: str, indent: int = 0) -> None:
    body.yaml_set_comment_before_after_key(key, before=f"\n{text}", indent=indent)


def _flow(value: Mapping[str, Any] | Sequence[Any]) -> CommentedMap | CommentedSeq:
    """On one line."""
    made: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        made = CommentedMap((key, inner(item)) for key, item in value.items())
    else:
        made = CommentedSeq(inner(item) for item in value)
    made.fa.set_flow_style()
    return made


def inner(item: Any) -> Any:
    return _flow(item) if isinstance(item, Mapping | list | tuple) else _rounded(item)


def _rounded(item: Any) -> Any:
    """What sums leave of a difference of equals is nothing."""
    if not isinstance(item, float):
        return item
    return 0.0 if abs(item) < NOTHING else float(f"{item:.{DIGITS}g}")
