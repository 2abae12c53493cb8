"""dsc plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsc.compiler.cli.arguments import PATH, complete_cluster, json_option, spec_argument
from dsc.compiler.cli.console import print_json, say
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.compiler.planner.serving.memory import Phase

FOR_CLUSTERS = ("context", "redundant", "loads", "output", "report", "trace")
"""Options that ask for more than is known where no cluster is named."""


@click.command("plan")
@spec_argument
@click.option(
    "--mode", type=click.Choice(["train", "prefill", "decode"]), default="train", show_default=True, help="What for."
)
@click.option(
    "--cluster",
    metavar="KIND",
    shell_complete=complete_cluster,
    help="Another kind of node than the spec's; `dsc zoo` lists them. Or a file like those that it prints.",
)
@click.option("--nodes", type=click.IntRange(min=1), help="Another number of nodes.")
@click.option("--gpus", type=click.IntRange(min=1), help="Another number of GPUs, which need not fill the last node.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of each sequence served; else workload's length.")
@click.option("--redundant", type=click.IntRange(min=0), help="Serve at least this many experts of a layer twice.")
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
    gpus: int | None,
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
    from dsc.compiler.cli.planned import NAME_ONE, nowhere, placed, serving, training
    from dsc.spec.loader import load

    model = load(spec)
    if nodes and gpus:
        raise click.UsageError("--nodes and --gpus both say how many: give one of them")
    if mode == "train" and model.cluster is None and not (cluster or nodes or gpus):
        if given := [f"--{name}" for name in FOR_CLUSTERS if ctx.params[name]]:
            raise click.UsageError(f"{', '.join(given)}: not for a plan without a cluster; {NAME_ONE}")
        nowhere(model, as_json)
        return
    model, machines = placed(model, cluster, nodes, gpus)
    if mode == "train":
        if context is not None or redundant is not None or loads is not None:
            raise click.UsageError("--context, --redundant and --loads are for --mode prefill and --mode decode")
        planned = training(model, machines)
    else:
        if trace is not None:
            raise click.UsageError("--trace shows the pipeline of a training step: it is for --mode train")
        planned = serving(model, machines, cast("Phase", mode), context, redundant, loads)
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
