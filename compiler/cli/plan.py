"""dsc plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsc.compiler.cli.arguments import PATH, complete_cluster, json_option, spec_argument
from dsc.compiler.cli.console import print_json, say
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.compiler.planner.serving.served import Phase

MILLISECONDS = click.FloatRange(min=0, min_open=True)
FOR_CLUSTERS = ("output", "report", "trace", "explain", "engine")
"""Options that ask for more than is known where no cluster is named."""


@click.command("plan")
@spec_argument
@click.option(
    "--mode",
    type=click.Choice(["train", "prefill", "decode", "serve"]),
    default="train",
    show_default=True,
    help="What for; serve: a pool of nodes for prompts and one for answers.",
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
@click.option("--answer", type=click.IntRange(min=1), help="Tokens of an answer, for --mode serve.")
@click.option("--target-ttft", type=MILLISECONDS, help="Milliseconds that may pass until a prompt's first token.")
@click.option("--target-tpot", type=MILLISECONDS, help="Milliseconds that each token of an answer may take.")
@click.option("--acceptance", type=click.FloatRange(0, 1), help="Share of multi-token prediction's guesses that hold.")
@click.option("--price", type=click.FloatRange(min=0), help="Dollars for an hour of a GPU: what a million tokens cost.")
@click.option("-o", "--output", type=PATH, help="Write the plan to this file, as YAML.")
@click.option("--report", type=PATH, help="Write one page of HTML, with all tables and pictures, to this file.")
@click.option("--trace", type=PATH, help="Write the training step to this file, for ui.perfetto.dev.")
@click.option(
    "--explain", metavar="KEY", help="Why the plan has this value: a name of `placement`, such as micro_batch."
)
@click.option(
    "--for",
    "engine",
    type=click.Choice(["torchtitan", "megatron"]),
    help="Print the layout as this engine is told it: a part of its configuration, its arguments.",
)
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
    answer: int | None,
    target_ttft: float | None,
    target_tpot: float | None,
    acceptance: float | None,
    price: float | None,
    output: str | None,
    report: str | None,
    trace: str | None,
    explain: str | None,
    engine: str | None,
    as_json: bool,
) -> None:
    """Does it fit, on which GPUs, how fast, and why not otherwise?

    For training, the fastest of all legal layouts that fit; for prefill and decode, the deployment that brings most
    tokens a second out of a GPU, where nobody waits longer than the targets say. `placement` in the spec pins parts of
    it. Exits with 1 if none fits, or is fast enough.
    Of a spec without a cluster, what training takes on one device that holds it all.
    """
    from dsc.compiler.planner.search.garbage import nothing_collected, nothing_collected_at_exit

    ctx.with_resource(nothing_collected())  # also while the rest is imported
    nothing_collected_at_exit()
    from dsc.compiler.cli.located import pins_located
    from dsc.compiler.cli.planned import NAME_ONE, nowhere, placed, training
    from dsc.compiler.cli.planned_serving import Asked, serving, two_pools
    from dsc.compiler.kernels.lowering import lowered
    from dsc.spec.loader import load

    model = load(spec)
    asked = Asked(context, redundant, loads, target_ttft, target_tpot, price, acceptance, answer)
    if nodes and gpus:
        raise click.UsageError("--nodes and --gpus both say how many: give one of them")
    asked.only_for(mode)
    if mode == "train" and model.cluster is None and not (cluster or nodes or gpus):
        if given := [f"--{'for' if name == 'engine' else name}" for name in FOR_CLUSTERS if ctx.params[name]]:
            raise click.UsageError(f"{', '.join(given)}: not for a plan without a cluster; {NAME_ONE}")
        nowhere(model, as_json)
        return
    model, machines = placed(model, cluster, nodes, gpus)
    for note in lowered(model).notes:
        say(f"note: {note}", stderr=True)
    if trace is not None and mode != "train":
        raise click.UsageError("--trace shows the pipeline of a training step: it is for --mode train")
    if report is not None and mode == "serve":
        raise click.UsageError("--report is of one pool: ask with --mode prefill or decode and that pool's --nodes")
    if explain is not None:
        _explainable(explain, mode)
    if engine is not None:
        _tellable(mode, alone=not (as_json or explain))
    with pins_located(spec, model):
        if mode == "train":
            planned = training(model)
        elif mode == "serve":
            planned = two_pools(model, machines, asked)
        else:
            planned = serving(model, machines, cast("Phase", mode), asked)
    for path, text in ((output, planned.yaml), (report, planned.report), (trace, planned.trace)):
        if path is not None and text is not None:
            Path(path).write_text(text(), encoding="utf-8", newline="\n")
            say(f"wrote {path}", stderr=as_json)
    if engine is not None and planned.told is not None:
        say(_told(planned.told, engine))
    elif explain is not None and planned.why is not None:
        planned.why(explain, as_json)
    elif as_json:
        print_json(planned.record)
    elif not (output or report or trace):
        planned.show()
    if planned.refused is not None:
        say(planned.refused(), stderr=True)
        ctx.exit(Exit.SAID_NO)


def _tellable(mode: str, alone: bool) -> None:
    """Refuses what --for cannot be asked of, or beside."""
    if mode != "train":
        raise click.UsageError("--for is of training: it is for --mode train")
    if not alone:
        raise click.UsageError("--for prints a configuration: leave out --json and --explain")


def _told(told: Callable[[str], str], engine: str) -> str:
    from dsc.compiler.planner.report.engines import CannotBeSaid

    try:
        return told(engine).rstrip()
    except CannotBeSaid as error:
        raise click.UsageError(f"--for {engine}: {error}") from error


def _explainable(key: str, mode: str) -> None:
    """Refuses a key that no plan has."""
    from dsc.compiler.planner.report.why import KEYS
    from dsc.spec.words import nearest

    if mode != "train":
        raise click.UsageError("--explain is for --mode train; a deployment's table has all that is one choice away")
    if key not in KEYS:
        close = nearest(key, KEYS)
        raise click.UsageError(f"--explain {key}: {f'did you mean {close}?' if close else 'one of ' + ', '.join(KEYS)}")
