"""What `dsc stats` shows a person: one model, or two beside each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from dsc.compiler.cli.measured import Measured
from dsc.compiler.cli.units import BYTES, COUNTS, EXACT_BYTES, FLOPS, PLAIN, Unit, common_unit, ratio
from dsc.compiler.facts.breakdown import PARTS

NAMED = 3  # parts in the sentence about a difference


def table(models: Sequence[Measured], batch: int | None = None) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("")
    for model in models:
        made.add_column(model.stats.name, justify="right", no_wrap=True)
    if len(models) == 2:
        made.add_column("ratio", justify="right", no_wrap=True)
    stats = [model.stats for model in models]
    _sum(made, "parameters", COUNTS, [model.parts.parameters for model in models])
    if any(facts.parameters.active != facts.parameters.total for facts in stats):
        _sum(made, "active for one token", COUNTS, [model.parts.active for model in models])
    _row(made, "parameters of multi-token prediction, besides", COUNTS, [facts.parameters.mtp for facts in stats])
    made.add_section()
    lengths = " and ".join(f"{length:,}" for length in dict.fromkeys(facts.sequence_length for facts in stats))
    title = f"training FLOPs per token, causal, {lengths} tokens"
    _sum(made, title, FLOPS, [model.parts.training_flops_per_token for model in models])
    _row(made, "forward FLOPs per token", FLOPS, [facts.flops_per_token.forward for facts in stats])
    made.add_section()
    _row(made, "cache per token", EXACT_BYTES, [facts.kv_cache_bytes_per_token for facts in stats])
    of_mtp = [facts.kv_cache_bytes_per_token_mtp for facts in stats]
    _row(made, "cache per token, multi-token prediction", EXACT_BYTES, of_mtp)
    if batch is not None:
        title = f"caches of {batch:,} sequences of {lengths} tokens"
        _row(made, title, BYTES, [batch * facts.kv_cache_bytes for facts in stats])
    _row(made, "weights in memory", BYTES, [facts.weight_bytes for facts in stats])
    _row(made, "layers", PLAIN, [facts.num_layers for facts in stats])
    return made


def as_markdown(made: Table) -> str:
    """The rows of a table, for GitHub: parts keep their indentation as a dash."""
    rows = zip(*(column.cells for column in made.columns), strict=True)
    head = [str(column.header) for column in made.columns]
    rule = ["---", *["---:"] * (len(head) - 1)]
    cells = [[re.sub(r"^ +", "- ", str(cell)) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *cells))


def difference(first: Measured, second: Measured) -> str:
    """Which parts make one model's training dearer than the other's, the largest first."""
    ours, theirs = (model.parts.training_flops_per_token for model in (first, second))
    deltas = {part: ours.get(part, 0) - theirs.get(part, 0) for part in PARTS}
    largest = sorted((part for part in PARTS if deltas[part]), key=lambda part: -abs(deltas[part]))[:NAMED]
    if not largest:
        return "training takes the same FLOPs per token, part by part"
    total = sum(deltas.values())
    unit = common_unit(FLOPS, [abs(deltas[part]) for part in largest])
    more = "more" if total > 0 else "less"
    named = ", ".join(f"{part} {'+' if deltas[part] > 0 else '-'}{unit.show(abs(deltas[part]))}" for part in largest)
    times = ratio(sum(ours.values()), sum(theirs.values()))
    return (
        f"training one token of {first.stats.name} takes {times} the FLOPs of {second.stats.name}, "
        f"{unit.show(abs(total))} {more}: {named}"
    )


def _sum(made: Table, title: str, units: tuple[Unit, ...], columns: Sequence[Mapping[str, int]]) -> None:
    """A sum and, below it and in its unit, its parts."""
    sums = [sum(parts.values()) for parts in columns]
    unit = common_unit(units, sums)
    _row(made, title, (unit,), sums, style="bold")
    for part in PARTS:
        _row(made, f"  {part}", (unit,), [parts.get(part, 0) for parts in columns])
    made.add_section()


def _row(made: Table, title: str, units: tuple[Unit, ...], numbers: Sequence[int], style: str = "") -> None:
    """Left out where no model has any of it."""
    if not any(numbers):
        return
    unit = common_unit(units, numbers)
    cells = [unit.show(number) if number else "-" for number in numbers]
    if len(numbers) == 2:
        cells.append(ratio(*numbers))
    made.add_row(title, *cells, style=style)
