"""checkpoint.py of a package: what the graph's parameters are called in Hugging Face's files."""

from __future__ import annotations

from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.named import with_names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.hf import checkpoint_names, export_config, family
from dsc.compiler.hf.fits import moe_of
from dsc.compiler.hf.tokens import write_tokens
from dsc.compiler.ops.moe import GroupedLinear
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear


def checkpoint_file(printer: FilePrinter, graph: Graph) -> File:
    spec = printer.spec
    names = checkpoint_names(spec)
    disk = {"gate_proj": names.expert_gate, "up_proj": names.expert_up, "down_proj": names.expert_down}
    named = with_names(spec, graph.constants)
    return printer.file(
        "checkpoint.py",
        "package/checkpoint.py",
        num_layers=repr(named.num_layers),
        config_note="" if family(spec) else ": Hugging Face has no model type for this architecture",
        config={key: repr(value) for key, value in saved_config(named).items()},
        expert_parts={name: tuple(disk[part] for part in parts) for name, parts in expert_parts(graph).items()},
        moe_block=names.moe_block,
        mtp=spec.mtp is not None,
        ranks=spec.serving_ranks > 1,
        shares_experts=spec.serving is not None and spec.serving.ep > 1,
        copies_experts=spec.serving is not None and spec.serving.redundant_experts > 0,
        divides=spec.tensor_ranks > 1,
        fp8=isinstance(spec.precision.linear, Fp8BlockLinear),
        tied=spec.tie_word_embeddings,
        copies=copies(spec),
        empty_shared_experts=has_empty_shared_experts(spec),
    )


def copies(spec: ModelSpec) -> str:
    """The tables of what a file may hold twice, as one mapping; empty where it may hold nothing twice."""
    tables = [name for name, given in (("MTP_COPIES", spec.mtp), ("TIED", spec.tie_word_embeddings)) if given]
    return f"({' | '.join(tables)})" if len(tables) > 1 else "".join(tables)


def has_empty_shared_experts(spec: ModelSpec) -> bool:
    """Whether transformers makes shared experts of width 0: DeepSeek's types have them in every mixture of experts."""
    found, moe = family(spec), moe_of(spec)
    is_deepseek = found is not None and found.model_type in ("deepseek_v2", "deepseek_v3")
    return is_deepseek and moe is not None and moe.n_shared_experts == 0


def saved_config(spec: ModelSpec) -> dict[str, object]:
    """config.json beside the weights that `save_hf` writes, which are never quantized."""
    if family(spec) is None:
        return {**write_tokens(spec.tokens), "model_type": spec.package_name}
    return {key: value for key, value in export_config(spec).items() if key != "quantization_config"}


def expert_parts(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Stacked parameters of experts, and the projections that lie one above the other in each."""
    ops = [op for block in graph.blocks.values() for node in block.nodes() for op in node.op.holders()]
    return {op.name: op.parts for op in ops if isinstance(op, GroupedLinear)}
