"""A decoder layer: attention and feed-forward, each after a norm and with a residual."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Dim
from dsc.compiler.ops.call import CallModule, Signature
from dsc.compiler.ops.elementwise import Add, Scale
from dsc.compiler.ops.norm import RmsNorm


def build_layer(
    context: Context, class_name: str, doc: str, attention: Block, mlp: Block, sizes: tuple[tuple[str, Dim], ...]
) -> Block:
    """[B, S, D] -> [B, S, D]; whatever losses the feed-forward returns come after it."""
    eps = context.constants.number("NORM_EPS", context.spec.norm.eps, "norm.eps")
    block = BlockBuilder(class_name, class_doc=doc)
    x, rope = block.input("x", context.hidden), block.input("rope", context.rope)
    h = block.add("h", RmsNorm("input_layernorm", context.hidden_size, eps, context.dtype), x)
    h = block.add("h", CallModule(Signature.of(attention), "self_attn"), h, rope)
    x = _add(block, context, x, h)

    block.paragraph()
    h = block.add("h", RmsNorm("post_attention_layernorm", context.hidden_size, eps, context.dtype), x)
    names = ["h", *(value.name for value in mlp.outputs[1:])]
    h, *losses = block.add_many(names, CallModule(Signature.of(mlp), "mlp", sizes), h)
    return block.finish(_add(block, context, x, h), *losses)


def _add(block: BlockBuilder, context: Context, x: Value, h: Value) -> Value:
    """x + multiplier * h."""
    multiplier = context.spec.residual.multiplier
    if multiplier != 1.0:
        h = block.add("h", Scale(context.constants.number("RESIDUAL_MULTIPLIER", multiplier, "residual.multiplier")), h)
    return block.add("x", Add(), x, h)
