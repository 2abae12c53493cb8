"""SwiGLU, its width given by whoever constructs it: dense layers and shared experts differ in nothing else."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Symbol
from dsc.compiler.ops.elementwise import ClampedSwiglu, Swiglu
from dsc.compiler.ops.projection import Linear

WIDTH = Symbol("width")


def swiglu(context: Context) -> Swiglu:
    """Of dense layers, shared and routed experts alike."""
    if (limit := context.spec.ffn.swiglu_limit) is None:
        return Swiglu()
    return ClampedSwiglu(context.constants.number("SWIGLU_LIMIT", limit, "ffn.swiglu_limit"))


def build_feed_forward(context: Context) -> Block:
    hidden, dtype = context.hidden_size, context.dtype
    block = BlockBuilder("FeedForward", class_doc="SwiGLU (arXiv 2002.05202).", arguments=(WIDTH,))
    x = block.input("x", context.hidden)
    gate = block.add("gate", Linear("gate_proj", hidden, WIDTH, dtype, "feed_forward"), x)
    up = block.add("up", Linear("up_proj", hidden, WIDTH, dtype, "feed_forward"), x)
    h = block.add("h", swiglu(context), gate, up)
    return block.finish(block.add("out", Linear("down_proj", WIDTH, hidden, dtype, "feed_forward"), h))
