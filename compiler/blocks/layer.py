"""A decoder layer: attention and feed-forward, each after a norm and with a residual."""

from collections.abc import Mapping

from dsc.compiler.blocks.context import Context
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.call import CallModule, Signature
from dsc.compiler.ops.elementwise import Add, Scale
from dsc.compiler.ops.loss import ZeroLoss
from dsc.compiler.ops.norm import RmsNorm


def build_layer(
    context: Context,
    class_name: str,
    doc: str,
    attention: Block,
    mlp: Block,
    sizes: tuple[tuple[str, Dim], ...],
    wanted: Mapping[str, TensorType],
    loss: bool,
) -> Block:
    """The stream in, the stream out.

    `wanted` are its other inputs, each read by the parts that have an input of that name. With `loss`, the balance loss
    of the feed-forward comes after the stream; zero where the feed-forward has none.
    """
    eps = context.constants.number("NORM_EPS", context.spec.norm.eps, "norm.eps")
    block = BlockBuilder(class_name, class_doc=doc)
    x = block.input("x", context.stream)
    given = {name: block.input(name, type) for name, type in wanted.items()}
    h = block.add("h", RmsNorm("input_layernorm", context.hidden_size, eps, context.dtype), x)
    h = block.add("h", CallModule(Signature.of(attention), "self_attn"), h, *_besides(attention, given))
    x = _add(block, context, x, h)

    block.paragraph()
    h = block.add("h", RmsNorm("post_attention_layernorm", context.hidden_size, eps, context.dtype), x)
    names = ["h", *(value.name for value in mlp.outputs[1:])]
    h, *losses = block.add_many(names, CallModule(Signature.of(mlp), "mlp", sizes), h, *_besides(mlp, given))
    x = _add(block, context, x, h)
    if loss and not losses:
        losses = [block.add("balance_loss", ZeroLoss(), x)]
    return block.finish(x, *losses)


def _besides(part: Block, given: Mapping[str, Value]) -> list[Value]:
    """What a part wants besides its first input."""
    return [given[value.name] for value in part.inputs[1:]]


def _add(block: BlockBuilder, context: Context, x: Value, h: Value) -> Value:
    """x + multiplier * h."""
    multiplier = context.spec.residual.multiplier
    if multiplier != 1.0:
        h = block.add("h", Scale(context.constants.number("RESIDUAL_MULTIPLIER", multiplier, "residual.multiplier")), h)
    return block.add("x", Add(), x, h)
