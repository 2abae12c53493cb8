"""dsc stats."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import complete_spec, json_option, spec_argument
from dsc.compiler.cli.console import print_json, show, tell


@click.command()
@spec_argument
@click.option("--compare", metavar="SPEC2", shell_complete=complete_spec, help="A second model, beside the first one.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of a sequence; else workload's length.")
@click.option("--batch", type=click.IntRange(min=1), help="Show the caches of this many sequences, too.")
@click.option("--markdown", is_flag=True, help="Print a table of Markdown, for a pull request.")
@json_option
def stats(
    spec: str, compare: str | None, context: int | None, batch: int | None, markdown: bool, as_json: bool
) -> None:
    """Parameters, FLOPs and cache bytes of a model, or of two side by side.

    All figures are sums over the graph that the code is printed from. With --compare, --json prints
    {"models": [SPEC, SPEC2]}.
    """
    from dsc.compiler.cli.measured import measure
    from dsc.compiler.cli.stats_table import as_markdown, difference, table

    models = [measure(source, context) for source in (spec, compare) if source is not None]
    if as_json:
        if markdown:
            raise click.UsageError("--json or --markdown: one of them")
        more = [
            {} if batch is None else {"kv_cache_bytes_of_batch": batch * model.stats.kv_cache_bytes} for model in models
        ]
        records = [{**model.record(), **extra} for model, extra in zip(models, more, strict=True)]
        print_json(records[0] if compare is None else {"models": records})
        return
    made = table(models, batch)
    if markdown:
        click.echo(as_markdown(made), nl=False)
    else:
        show(made)
    if compare is not None:
        tell(difference(*models))
