"""Grouped-query attention in a sliding window: only which keys a query sees differs."""

from dsc.compiler.blocks.attention_gqa import build_grouped, parts, variant
from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block
from dsc.compiler.ops.attention import WindowedAttention
from dsc.spec.attention import WindowAttention


def build_window(context: Context, scope: Scope, spec: WindowAttention) -> Block:
    window = scope.dim("WINDOW", spec.window, "window")
    core = WindowedAttention(variant(spec), scope.prefix.lower(), window=window)
    class_name = scope.class_name("Attention", alone="SlidingWindowAttention")
    doc = f"Grouped-query attention in a sliding window{parts(spec)} (arXiv 2310.06825)."
    return build_grouped(context, scope, spec, core, class_name, doc, window)
