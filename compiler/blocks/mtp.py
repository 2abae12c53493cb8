"""Multi-token prediction (DeepSeek-V3, section 2.2): one more layer for each token further ahead."""

from collections.abc import Mapping
from dataclasses import dataclass

from dsc.compiler.blocks.context import TOKENS, Context
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.ops.call import CallListed, CallModule, Signature
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Embedding, Linear
from dsc.compiler.ops.shape import Concat, SkipFirst, SkipLast

DOC = "Predicts one token further ahead from the depth before and the token between (DeepSeek-V3, section 2.2)."


def build_mtp(context: Context, layer: Block) -> Block:
    """eh_proj(concat(enorm(embedding), hnorm(hidden))), a layer, a norm: the input of the shared head."""
    hidden, dtype, eps = context.hidden_size, context.dtype, "NORM_EPS"
    block = BlockBuilder("MultiTokenPredictor", class_doc=DOC)
    x = block.input("x", context.hidden)
    ahead = block.input("ahead", context.hidden)
    wanted = [block.input(value.name, value.type) for value in layer.inputs[1:]]
    ahead = block.add("ahead", RmsNorm("enorm", hidden, eps, dtype), ahead)
    x = block.add("x", RmsNorm("hnorm", hidden, eps, dtype), x)
    x = block.add("x", Concat(), ahead, x)
    x = block.add("x", Linear("eh_proj", 2 * hidden, hidden, dtype), x)
    names = ["x", *(value.name for value in layer.outputs[1:])]
    x, *losses = block.add_many(names, CallModule(Signature.of(layer), "layer"), x, *wanted)
    normed = block.add("hidden", RmsNorm("norm", hidden, eps, dtype), x)
    return block.finish(normed, x, *losses) if _passes_raw_state(context) else block.finish(normed, *losses)


@dataclass(frozen=True)
class Depth:
    """The inputs of one depth's loss, from which the next depth's are cut."""

    state: Value
    tokens: Value
    labels: Value
    tables: Mapping[str, Value]
    """The rotary tables that the layer wants, by the name of its input."""


def add_depth(
    block: BlockBuilder, context: Context, module: Block, depth: int, before: Depth
) -> tuple[Depth, Value, list[Value]]:
    """Runs one depth; returns its inputs for the next, the hidden state for the head, and the layer's losses.

    Depth d (from 0) sees positions 0 .. S - d - 2: its input token lies d + 1 ahead, its label one further.
    """
    assert context.spec.mtp is not None
    count = context.constants.dim("MTP_DEPTH", context.spec.mtp.depth, "mtp.depth")
    block.paragraph()
    tokens = block.add("mtp_tokens", SkipFirst(1), before.tokens)
    labels = block.add("mtp_labels", SkipFirst(1), before.labels)
    tables = {name: block.add(f"mtp_{name}", SkipLast(1), table) for name, table in before.tables.items()}
    name = f"mtp_{before.state.name.removeprefix('mtp_')}"
    state = block.add(name, SkipLast(1), before.state)
    table = Embedding("embed_tokens", context.vocab_size, context.hidden_size, context.dtype)
    ahead = block.add("ahead", table, tokens)
    raw = [name] if _passes_raw_state(context) else []
    losses = [f"{'depth' if depth else 'mtp'}_{value.name}" for value in module.outputs[1 + len(raw) :]]
    call = CallListed(Signature.of(module), "mtp", depth, count)
    given = {TOKENS: tokens} | tables
    wanted = [given[value.name] for value in module.inputs[2:]]
    hidden, *rest = block.add_many(["mtp_hidden", *raw, *losses], call, state, ahead, *wanted)
    state = rest.pop(0) if raw else hidden
    return Depth(state, tokens, labels, tables), hidden, rest


def _passes_raw_state(context: Context) -> bool:
    """Whether a depth also returns its state from before the norm, which only a further depth would read."""
    mtp = context.spec.mtp
    return mtp is not None and mtp.hidden == "pre_norm" and mtp.depth > 1
