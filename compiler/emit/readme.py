"""README.md of a package: the model card that the compiler can prove."""

from __future__ import annotations

from collections.abc import Sequence

from dsc.compiler.emit.file import File, FilePrinter, needs_triton
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.spec.model import ModelSpec


def readme_file(printer: FilePrinter, graph: Graph, files: Sequence[File], notes: tuple[str, ...]) -> File:
    """`files` are all others."""
    listed = sorted((file for file in files if file.purpose), key=lambda file: (file.path.count("/"), file.path))
    values: dict[str, object] = {"ranks": printer.spec.serving_ranks}
    values |= {"facts": facts(printer.spec, graph), "notes": notes, "files": listed, "triton": needs_triton(files)}
    launched = any(file.path == "run.sh" for file in files)
    return printer.file("README.md", "package/readme.md", launched=launched, **values)


def facts(spec: ModelSpec, graph: Graph) -> list[tuple[str, str]]:
    stats = compute_stats(spec, graph)
    count, flops = stats.parameters, stats.flops_per_token
    rows = [
        ("layers", f"{stats.num_layers}"),
        ("parameters", f"{count.total:,}"),
        ("active for one token", f"{count.active:,}"),
        ("active without the embedding", f"{count.active_without_embedding:,}"),
        ("of multi-token prediction, besides", f"{count.mtp:,}"),
        (f"forward FLOPs per token at {stats.sequence_length:,} tokens, causal", f"{flops.forward:,}"),
        ("training FLOPs per token", f"{flops.training:,}"),
        ("cache bytes per token", f"{stats.kv_cache_bytes_per_token:,}"),
    ]
    return [row for row in rows if row[1] != "0"]
