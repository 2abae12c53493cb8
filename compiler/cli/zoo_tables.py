"""What `dsc zoo` shows a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import console
from dsc.compiler.cli.units import BYTES, COUNTS, common_unit

WIDE = 160  # columns that the longest description takes

Record = Mapping[str, object]


def models_table(models: Sequence[Record]) -> Table:
    table = _table("model", ("parameters", "active", "cache per token"))
    for model in models:
        counts = [_number(model[key]) for key in ("parameters", "active")]
        shown = [common_unit(COUNTS, [count]).show(count) for count in counts]
        grows = _number(model["kv_cache_bytes_per_token"])
        cache = f"{grows:,} B" if grows else "window only"
        _add(table, str(model["name"]), *shown, cache, str(model["description"]))
    return table


def clusters_table(clusters: Sequence[Record]) -> Table:
    table = _table("cluster", ("GPUs per node", "memory per GPU", "bf16 per GPU"))
    for cluster in clusters:
        hbm, bf16 = _number(cluster["hbm_bytes"]), cluster["bf16_flops"]
        assert isinstance(bf16, float)
        _add(
            table,
            str(cluster["name"]),
            str(cluster["gpus_per_node"]),
            common_unit(BYTES, [hbm]).show(hbm),
            f"{bf16 / 1e12:,.0f} TFLOP/s" if bf16 >= 1e12 else f"{bf16 / 1e9:,.0f} GFLOP/s",
            str(cluster["description"]),
        )
    return table


def _table(what: str, figures: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(what, no_wrap=True, style="bold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    if console().width >= WIDE:
        table.add_column("")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row; its last cell, the description, where there is room for it."""
    table.add_row(*cells[: len(table.columns)])


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
