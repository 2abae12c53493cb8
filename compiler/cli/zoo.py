"""dsc zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich import box
from rich.table import Table

from dsc.compiler.cli.arguments import json_option
from dsc.compiler.cli.console import print_json, show
from dsc.compiler.cli.measured import measure
from dsc.compiler.cli.units import BYTES, COUNTS, common_unit
from dsc.spec.cluster import Cluster
from dsc.spec.loader import load_section
from dsc.spec.zoo import CLUSTERS, MODELS, names, path_of

Record = Mapping[str, object]


@click.command()
@json_option
def zoo(as_json: bool) -> None:
    """The models and clusters that ship with dsc.

    A model's name stands for its spec in every verb, a cluster's for `cluster.kind` in a spec.
    """
    models = [_model(name) for name in names(MODELS)]
    clusters = [_cluster(name) for name in names(CLUSTERS)]
    if as_json:
        print_json({"models": models, "clusters": clusters})
        return
    show(_models_table(models))
    show(_clusters_table(clusters))


def _model(name: str) -> dict[str, object]:
    stats = measure(name).stats
    return {
        "name": name,
        "parameters": stats.parameters.total,
        "active": stats.parameters.active,
        "kv_cache_bytes_per_token": stats.kv_cache_bytes_per_token,
        "description": _description(name, MODELS),
    }


def _cluster(name: str) -> dict[str, object]:
    path = path_of(name, CLUSTERS)
    assert path is not None
    cluster = load_section(Cluster, path.read_bytes(), str(path), lambda _: [])
    return {**cluster.model_dump(), "description": _description(name, CLUSTERS)}


def _description(name: str, folder: Path) -> str:
    """The comment that opens the file."""
    path = path_of(name, folder)
    assert path is not None
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _models_table(models: Sequence[Record]) -> Table:
    table = _table("model", ("parameters", "active", "cache per token"))
    for model in models:
        counts = [_number(model[key]) for key in ("parameters", "active")]
        shown = [common_unit(COUNTS, [count]).show(count) for count in counts]
        cache = f"{_number(model['kv_cache_bytes_per_token']):,} B"
        table.add_row(str(model["name"]), *shown, cache, str(model["description"]))
    return table


def _clusters_table(clusters: Sequence[Record]) -> Table:
    table = _table("cluster", ("GPUs per node", "memory per GPU", "bf16 per GPU"))
    for cluster in clusters:
        hbm, bf16 = _number(cluster["hbm_bytes"]), cluster["bf16_flops"]
        assert isinstance(bf16, float)
        table.add_row(
            str(cluster["name"]),
            str(cluster["gpus_per_node"]),
            common_unit(BYTES, [hbm]).show(hbm),
            f"{bf16 / 1e12:,.0f} TFLOP/s",
            str(cluster["description"]),
        )
    return table


def _table(what: str, figures: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(what, no_wrap=True, style="bold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("")
    return table


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
