"""What the zoo holds, with figures of its graphs: what spec/zoo.json says, which `dsc zoo` prints.

The file is there because building every graph takes a second. `make goldens` writes it, and a test derives it anew.
"""

from __future__ import annotations

from pathlib import Path

from dsc.compiler.cli.measured import measure
from dsc.spec.loader import load_machine
from dsc.spec.zoo import CLUSTERS, MODELS, names, path_of


def zoo_figures() -> dict[str, object]:
    return {
        "models": [_model(name) for name in names(MODELS)],
        "clusters": [_cluster(name) for name in names(CLUSTERS)],
    }


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
    return {**load_machine(path).model_dump(), "description": _description(name, CLUSTERS)}


def _description(name: str, folder: Path) -> str:
    """The comment that opens the file."""
    path = path_of(name, folder)
    assert path is not None
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
