"""dsc plan."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import PATH, json_option, spec_argument
from dsc.compiler.cli.console import console, deliver, print_json, say
from dsc.compiler.cli.exits import Exit
from dsc.compiler.cli.plan_tables import show_plan
from dsc.compiler.driver import build, timed
from dsc.compiler.planner.capacity import smallest_cluster
from dsc.compiler.planner.hardware import hardware
from dsc.compiler.planner.plan import Plan, make_plan, record
from dsc.compiler.planner.search import Problem
from dsc.compiler.planner.write import plan_yaml
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec


@click.command("plan")
@spec_argument
@click.option("--cluster", metavar="KIND", help="Another kind of node than the spec's; `dsc zoo` lists them.")
@click.option("--nodes", type=click.IntRange(min=1), help="Another number of nodes.")
@click.option("-o", "--output", type=PATH, help="Write the plan to this file, as YAML.")
@json_option
@click.pass_context
def plan_command(
    ctx: click.Context, spec: str, cluster: str | None, nodes: int | None, output: str | None, as_json: bool
) -> None:
    """Does training fit, on which GPUs, how fast, and why not otherwise?

    The fastest of all legal layouts that fit; `placement` in the spec pins parts of it. Exits with 1 if none fits.
    """
    problem = _problem(load(spec), cluster, nodes)
    with console(stderr=True).status("planning"):
        plan = make_plan(problem)
    if output is not None:
        deliver(plan_yaml(plan), output)
    if as_json:
        print_json(record(plan))
    elif output is None:
        show_plan(plan)
    if not plan.fits:
        say(_too_small(plan), stderr=True)
        ctx.exit(Exit.SAID_NO)


def _problem(spec: ModelSpec, cluster: str | None, nodes: int | None) -> Problem:
    """The spec on its cluster, on another, or on one device where none is named."""
    known = spec.cluster or Machines(kind="cpu", nodes=1)
    kind = cluster or known.kind
    count = nodes or (known.nodes if cluster is None else 1)
    placed = spec.model_copy(update={"cluster": Machines(kind=kind, nodes=count)})
    assert placed.cluster is not None
    return Problem(placed, build(placed).training, timed(placed), hardware(placed.cluster))


def _too_small(plan: Plan) -> str:
    cluster = plan.problem.hardware.cluster
    nodes = smallest_cluster(plan.problem)
    missing = plan.chosen.bytes - plan.problem.capacity
    needed = f"{plan.chosen.bytes / 2**30:.1f} GiB, {missing / 2**30:.1f} GiB more than it has"
    enough = "no number of them would do" if nodes is None else f"{nodes} nodes of {cluster.name} would do"
    return f"does not fit: a GPU needs at least {needed}; {enough}"
