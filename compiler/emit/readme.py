"""README.md of a package: the model card that the compiler can prove."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from jinja2 import Environment

from dsc.compiler.graph.graph import Graph
from dsc.compiler.stats import compute_stats
from dsc.spec.model import ModelSpec

PURPOSES = {
    "model.py": "the model: one class for each block, one line for each operation",
    "checkpoint.py": "safetensors under Hugging Face names, in and out",
    "storage.py": "a folder of safetensors files, read as its index says and replaced as a whole",
    "train/": "a trainer: data, loop, metrics, checkpoints to resume from",
    "infer/": "generation with a cache",
}


def readme_file(
    templates: Environment, spec: ModelSpec, graph: Graph, kernels: Mapping[str, str], notes: tuple[str, ...]
) -> str:
    """`kernels` are the files of kernels/; what each is for is the first line of its docstring."""
    purposes = {path: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0] for path, text in kernels.items()}
    return templates.get_template("package/readme.md.jinja").render(
        name=spec.name,
        package=spec.package_name,
        vocab_size=spec.vocab_size,
        facts=facts(spec, graph),
        notes=notes,
        files=[*PURPOSES.items(), *sorted(purposes.items()), ("dsc.lock.json", "versions and hashes")],
    )


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
