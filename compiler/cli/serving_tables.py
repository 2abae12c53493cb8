"""What `dsc plan` shows a person of GPUs that serve."""

from __future__ import annotations

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import give_verdict, show, tell
from dsc.compiler.cli.plan_tables import GIB, INDENT, rejected
from dsc.compiler.planner.report.plan import where
from dsc.compiler.planner.report.pools import pools_record
from dsc.compiler.planner.report.serving_record import serving_record, speed_text
from dsc.compiler.planner.serving.deployment import ServingFound
from dsc.compiler.planner.serving.estimate import Speed
from dsc.compiler.planner.serving.pools import Pools


def show_serving(found: ServingFound) -> None:
    problem, chosen, facts = found.problem, found.chosen, serving_record(found)
    serving, cache, experts = chosen.serving, facts["cache"], facts["experts"]
    what = f"{problem.spec.name}, {problem.phase} on {where(problem.hardware)}"
    give_verdict(verdict(found), found.meets, what)
    groups = f"dp {serving.dp} x tp {serving.tp}"
    if experts:
        groups += (
            f"; experts: ep {serving.ep}, {experts['slots_per_gpu']} on a GPU, "
            f"{experts['routed']} routed and {experts['redundant']} redundant ones"
        )
    tell(groups, INDENT)
    tell(
        f"weights in {facts['weights']}; cache of {cache['bytes_per_token']:,} bytes a token in pages of "
        f"{cache['page_tokens']}; sequences of {problem.context:,} tokens",
        INDENT,
    )
    show(_ledger(found))
    if chosen.plan is not None:
        group, everywhere = facts["sequences"]["of_a_group"], facts["sequences"]["of_all"]
        tell(f"{group:,} sequences at once in a group, {everywhere:,} in all; {cache['pages']:,} pages on a GPU")
    if chosen.speed is not None:
        show(_milliseconds(chosen.speed))
        tell(f"{sequences(chosen.batch)} of a group in a step; {speed_text(found)} (+-{chosen.speed.uncertainty:.0%})")
    for text in facts["not_emitted"]:
        tell(f"not emitted yet: {text}")
    if facts["other_engines"]:
        tell(facts["other_engines"])
    if found.placed:
        worst = max(found.placed, key=lambda one: one.imbalance)
        blocks = f", {worst.of_blocks:.2f} in blocks" if worst.of_blocks is not None else ""
        tell(
            f"experts by load: the busiest GPU carries {worst.imbalance:.2f} times the mean at most, in layer "
            f"{worst.layer}{blocks}; -o and --json have the experts of each GPU"
        )
    show(rejected(found.around))


def show_pools(pools: Pools) -> None:
    prefill, decode, machines = pools.prefill, pools.decode, pools.decode.problem.hardware
    nodes = sum(pools.nodes)
    worse = prefill if not prefill.meets else decode
    what = f"{decode.problem.spec.name} in two pools on {where(machines.of_nodes(nodes))}"
    give_verdict(verdict(worse), pools.meets, what)
    tell(f"prompts of {pools.prompt:,} tokens, answers of {pools.answer:,}", INDENT)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("pool", "nodes", "groups", "requests/s", ""):
        table.add_column(column, justify="left" if column in ("pool", "groups", "") else "right")
    for name, found, count, rate in zip(
        ("prefill", "decode"), (prefill, decode), pools.nodes, pools.offered, strict=True
    ):
        serving = found.chosen.serving
        experts = f", ep {serving.ep}" if serving.slots else ""
        table.add_row(
            name, f"{count:,}", f"dp {serving.dp} x tp {serving.tp}{experts}", f"{rate:,.2f}", speed_text(found)
        )
    show(table)
    balance = f"{pools.gpus_for_one:,.2g} GPUs of decode for each of prefill"
    tell(f"{pools.requests:,.2f} requests a second; both are always busy with {balance}")
    if (price := decode.problem.price) is not None and pools.requests:
        tell(f"{pools.dollars(price):,.3f} dollars for a million tokens, of prompts and answers alike")
    for text in pools_record(pools)["not_emitted"]:
        tell(f"not emitted yet: {text}")


def verdict(found: ServingFound) -> str:
    if found.meets:
        return "fits"
    return "too slow" if found.fits else "does not fit"


def sequences(count: int) -> str:
    return f"{count:,} sequence{'' if count == 1 else 's'}"


def _milliseconds(speed: Speed) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of a step", "ms", "share", "", ""):
        table.add_column(column, justify="right" if column in ("ms", "share") else "left")
    for line in speed.lines:
        share = line.seconds / speed.seconds
        table.add_row(line.name, f"{1e3 * line.seconds:,.3f}", f"{share:.1%}", line.provenance, line.source)
    table.add_section()
    table.add_row("step", f"{1e3 * speed.seconds:,.3f}", style="bold")
    return table


def _ledger(found: ServingFound) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"of one {found.problem.hardware.device}")
    table.add_column("GiB", justify="right")
    table.add_column("")
    table.add_column("")
    for line in found.chosen.lines:
        table.add_row(line.name, f"{line.bytes / GIB:.2f}", line.provenance, line.source)
    table.add_section()
    table.add_row("total", f"{found.chosen.bytes / GIB:.2f}", style="bold")
    table.add_row("capacity", f"{found.problem.capacity / GIB:.2f}")
    return table
