"""dsc stats."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import complete_spec, json_option, spec_argument
from dsc.compiler.cli.console import print_json, show, tell


@click.command()
@spec_argument
@click.option("--compare", metavar="SPEC2", shell_complete=complete_spec, help="A second model, beside the first one.")
@json_option
def stats(spec: str, compare: str | None, as_json: bool) -> None:
    """Parameters, FLOPs and cache bytes of a model, or of two side by side.

    All figures are sums over the graph that the code is printed from. With --compare, --json prints
    {"models": [SPEC, SPEC2]}.
    """
    from dsc.compiler.cli.measured import measure
    from dsc.compiler.cli.stats_table import difference, table

    models = [measure(source) for source in (spec, compare) if source is not None]
    if as_json:
        print_json(models[0].record() if compare is None else {"models": [model.record() for model in models]})
        return
    show(table(models))
    if compare is not None:
        tell(difference(*models))
