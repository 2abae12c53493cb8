"""dsc plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from dsc.compiler.cli.arguments import PATH, json_option, spec_argument
from dsc.compiler.cli.console import console, print_json, say
from dsc.compiler.cli.exits import Exit
from dsc.compiler.cli.plan_tables import show_plan, show_serving, show_trivial
from dsc.compiler.driver import build, timed
from dsc.compiler.planner.machine.hardware import Hardware, hardware
from dsc.compiler.planner.report.page import plan_html, serving_html
from dsc.compiler.planner.report.pictures.trace import chrome_trace
from dsc.compiler.planner.report.plan import Plan, make_plan
from dsc.compiler.planner.report.record import record
from dsc.compiler.planner.report.serving_record import serving_record
from dsc.compiler.planner.report.trivial import trivial_plan, trivial_record
from dsc.compiler.planner.report.write import plan_yaml, serving_yaml
from dsc.compiler.planner.search.capacity import smallest_cluster
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.serving.deployment import (
    ServingFound,
    ServingProblem,
    gib,
    make_serving_plan,
    smallest_deployment,
)
from dsc.compiler.planner.serving.expert_loads import Loads, read_loads
from dsc.compiler.planner.serving.experts import PlacementError
from dsc.compiler.planner.serving.memory import Phase
from dsc.spec.cluster import Machines
from dsc.spec.errors import DscError, Finding
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

FOR_CLUSTERS = ("context", "redundant", "loads", "output", "report", "trace")
"""Options that ask for more than is known where no cluster is named."""
NAME_ONE = "name one in the spec, `cluster: {kind: h800, nodes: 256}`, or with --cluster h800 --nodes 256"


@dataclass(frozen=True)
class Planned:
    """A plan, as whatever it may be asked for."""

    record: dict[str, Any]
    yaml: Callable[[], str]
    report: Callable[[], str]
    trace: Callable[[], str] | None
    show: Callable[[], None]
    too_small: Callable[[], str] | None
    """What to say where nothing fits."""


@click.command("plan")
@spec_argument
@click.option(
    "--mode", type=click.Choice(["train", "prefill", "decode"]), default="train", show_default=True, help="What for."
)
@click.option("--cluster", metavar="KIND", help="Another kind of node than the spec's; `dsc zoo` lists them.")
@click.option("--nodes", type=click.IntRange(min=1), help="Another number of nodes.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of each sequence served; else workload's length.")
@click.option("--redundant", type=click.IntRange(min=0), help="At least so many experts of a layer are served twice.")
@click.option("--loads", type=PATH, help="Place experts by these loads: JSON, for each layer of experts a list.")
@click.option("-o", "--output", type=PATH, help="Write the plan to this file, as YAML.")
@click.option("--report", type=PATH, help="Write one page of HTML, with all tables and pictures, to this file.")
@click.option("--trace", type=PATH, help="Write the training step to this file, for ui.perfetto.dev.")
@json_option
@click.pass_context
def plan_command(
    ctx: click.Context,
    spec: str,
    mode: str,
    cluster: str | None,
    nodes: int | None,
    context: int | None,
    redundant: int | None,
    loads: str | None,
    output: str | None,
    report: str | None,
    trace: str | None,
    as_json: bool,
) -> None:
    """Does it fit, on which GPUs, how fast, and why not otherwise?

    For training, the fastest of all legal layouts that fit; for prefill and decode, the deployment that holds most
    sequences at once. `placement` in the spec pins parts of it. Exits with 1 if none fits.
    Of a spec without a cluster, what training takes on one device that holds it all.
    """
    model = load(spec)
    if mode == "train" and model.cluster is None and cluster is None and nodes is None:
        if given := [f"--{name}" for name in FOR_CLUSTERS if ctx.params[name]]:
            raise click.UsageError(f"{', '.join(given)}: not for a plan without a cluster; {NAME_ONE}")
        _nowhere(model, as_json)
        return
    model, machines = _placed(model, cluster, nodes)
    if mode == "train":
        if context is not None or redundant is not None or loads is not None:
            raise click.UsageError("--context, --redundant and --loads are for --mode prefill and --mode decode")
        planned = _training(model, machines)
    else:
        if trace is not None:
            raise click.UsageError("--trace shows the pipeline of a training step: it is for --mode train")
        planned = _serving(model, machines, cast(Phase, mode), context, redundant, loads)
    for path, text in ((output, planned.yaml), (report, planned.report), (trace, planned.trace)):
        if path is not None and text is not None:
            Path(path).write_text(text(), encoding="utf-8", newline="\n")
            say(f"wrote {path}", stderr=as_json)
    if as_json:
        print_json(planned.record)
    elif not (output or report or trace):
        planned.show()
    if planned.too_small is not None:
        say(planned.too_small(), stderr=True)
        ctx.exit(Exit.SAID_NO)


def _nowhere(spec: ModelSpec, as_json: bool) -> None:
    plan = trivial_plan(spec, build(spec).training)
    if as_json:
        print_json(trivial_record(plan))
    else:
        show_trivial(plan)
        say(f"whether it fits, how fast, and on how many: {NAME_ONE}")


def _placed(spec: ModelSpec, kind: str | None, nodes: int | None) -> tuple[ModelSpec, Hardware]:
    """The spec on its cluster, or on another."""
    own = spec.cluster if kind is None else None
    if own is None and kind is None:
        raise DscError([Finding("DSC065", f"{spec.name} names no cluster to plan for", ("cluster",), NAME_ONE)])
    machines = Machines(kind=kind or (own.kind if own else ""), nodes=nodes or (own.nodes if own else 1))
    return spec.model_copy(update={"cluster": machines}), hardware(machines)


def _training(spec: ModelSpec, machines: Hardware) -> Planned:
    with console(stderr=True).status("planning"):
        plan = make_plan(Problem(spec, build(spec).training, timed(spec), machines))
    return Planned(
        record(plan),
        lambda: plan_yaml(plan),
        lambda: plan_html(plan),
        lambda: chrome_trace(plan.time.timeline, f"a training step of {spec.name}"),
        lambda: show_plan(plan),
        None if plan.fits else lambda: _too_small(plan),
    )


def _serving(
    spec: ModelSpec, machines: Hardware, phase: Phase, context: int | None, redundant: int | None, loads: str | None
) -> Planned:
    program = build(spec)
    tokens = context or spec.workload.sequence_length
    graphs, measured = (program.training, program.inference), _loads(spec, loads)
    problem = ServingProblem(spec, *graphs, machines, phase, tokens, redundant or 0, measured)
    with console(stderr=True).status("planning"):
        found = make_serving_plan(problem)
    return Planned(
        serving_record(found),
        lambda: serving_yaml(found),
        lambda: serving_html(found),
        None,
        lambda: show_serving(found),
        None if found.fits else lambda: _too_small_to_serve(found),
    )


def _loads(spec: ModelSpec, path: str | None) -> Loads:
    if path is None:
        return ()
    try:
        return read_loads(Path(path).read_text(encoding="utf-8"), spec)
    except (PlacementError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--loads") from error


def _too_small(plan: Plan) -> str:
    problem = plan.problem
    return _refusal("", plan.chosen.bytes, problem.capacity, problem.hardware, smallest_cluster(problem))


def _too_small_to_serve(found: ServingFound) -> str:
    problem = found.problem
    what = f" for one sequence of {problem.context:,} tokens"
    return _refusal(what, found.chosen.bytes, problem.capacity, problem.hardware, smallest_deployment(problem))


def _refusal(what: str, needed: int, capacity: int, machines: Hardware, nodes: int | None) -> str:
    kind = machines.cluster.name
    enough = (
        f"no number of {kind} nodes would do"
        if nodes is None
        else f"{nodes} nodes of {kind} would do, {nodes * machines.cluster.gpus_per_node:,} GPUs"
    )
    return (
        f"does not fit: a GPU needs at least {gib(needed)}{what}, {gib(needed - capacity)} more than it has; {enough}"
    )
