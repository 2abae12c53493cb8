"""The whole model: which blocks there are, and the methods of its root class."""

from dsc.compiler.blocks.attention_gqa import build_gqa
from dsc.compiler.blocks.attention_mla import build_mla
from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.ffn import WIDTH, build_feed_forward
from dsc.compiler.blocks.layer import build_layer
from dsc.compiler.blocks.moe import build_moe, moe_sizes
from dsc.compiler.blocks.mtp import Depth, add_depth, build_mtp
from dsc.compiler.blocks.rope import rope_constants
from dsc.compiler.blocks.router import build_bias_update, build_router
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Axis, Int, S, Symbol
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.call import CallMethod, RepeatLayers, RepeatLayersSum, Signature
from dsc.compiler.ops.elementwise import Add, Scale
from dsc.compiler.ops.init import InitWeights
from dsc.compiler.ops.loss import CrossEntropy, CrossEntropyAndZLoss, LossParts, SumLosses, WeighMtpLoss, ZeroLoss
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Embedding, Linear, TiedHead
from dsc.compiler.ops.rope import RotaryTable, SpreadPairs
from dsc.compiler.ops.router import UpdateEveryRouter
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

DTYPES = {"bf16": DType.BF16, "fp32": DType.FP32, "fp8": DType.FP8}
FORWARD_DOC = "Next-token logits [B, S, W] for tokens [B, S]."
BACKBONE_DOC = "The layers: tokens [B, S] to the last hidden state [B, S, D], before the final norm."
LOSS_DOC = "The training loss and its parts. labels[b, s] is the token after tokens[b, s]; -100 leaves a position out."
INIT_DOC = "Initialize: matrices from a normal distribution, norms to one, biases and counts to zero."
UPDATE_DOC = "After each optimizer step: move every router's selection bias towards an even load."


def build_graph(spec: ModelSpec) -> Graph:
    """The graph of a checked spec, before any pass."""
    context = _context(spec)
    attention = build_attention(context)
    feed_forward = build_feed_forward(context)
    layers, blocks = _layer_kinds(context, attention, feed_forward)
    mtp = build_mtp(context, layers[spec.layers[-1].ffn]) if spec.mtp else None
    backbone = _backbone(context, layers)
    blocks += [mtp] if mtp else []
    blocks += [_init_weights(context), backbone, _forward(context, backbone), _loss(context, backbone, mtp)]
    blocks += [_update_biases()] if "Router.update_selection_bias" in {block.key for block in blocks} else []
    return Graph({block.key: block for block in blocks}, context.constants)


def build_attention(context: Context) -> Block:
    spec = context.spec.attention
    return build_mla(context, spec) if isinstance(spec, MlaAttention) else build_gqa(context, spec)


def _context(spec: ModelSpec) -> Context:
    constants = Constants()
    vocab = constants.dim("VOCAB_SIZE", spec.vocab_size, "vocab_size", "W", Axis.VOCABULARY)
    hidden = constants.dim("HIDDEN_SIZE", spec.hidden_size, "hidden_size", "D")
    constants.number("MAX_POSITION_EMBEDDINGS", spec.max_position_embeddings, "max_position_embeddings")
    constants.number("INITIALIZER_RANGE", spec.initializer_range, "initializer_range")
    constants.number("NORM_EPS", spec.norm.eps, "norm.eps")
    for name, count, origin in _schedule(spec):
        constants.dim(name, count, origin)
    dtype, cache_dtype = (DTYPES[name] for name in (spec.precision.parameters, spec.precision.kv_cache))
    rotary = rotary_dim(constants, spec)
    rope_constants(constants, spec.attention.rope, "attention.rope", rotary)
    if isinstance(linear := spec.precision.linear, Fp8BlockLinear):
        constants.number("WEIGHT_BLOCK", tuple(linear.weight_block), "precision.linear.weight_block")
    constants.number("SEQUENCE_LENGTH", spec.workload.sequence_length, "workload.sequence_length")
    return Context(spec, constants, dtype, cache_dtype, vocab, hidden, TensorType((Int(2), S, rotary), DType.FP32))


def rotary_dim(constants: Constants, spec: ModelSpec) -> Symbol:
    """How many components of a head are rotated."""
    if isinstance(spec.attention, MlaAttention):
        return constants.dim("QK_ROPE_HEAD_DIM", spec.attention.qk_rope_head_dim, "attention.qk_rope_head_dim", "R")
    return constants.dim("HEAD_DIM", spec.attention.head_dim, "attention.head_dim", "N")


def _schedule(spec: ModelSpec) -> list[tuple[str, int, str]]:
    """A constant for each group of layers: (name, repeat, key). Groups of one kind are numbered from the second on."""
    if len(spec.layers) == 1:
        return [("NUM_LAYERS", spec.layers[0].repeat, "layers[0].repeat")]
    seen: dict[str, int] = {}
    groups = []
    for index, group in enumerate(spec.layers):
        seen[group.ffn] = seen.get(group.ffn, 0) + 1
        suffix = f"_{seen[group.ffn]}" if seen[group.ffn] > 1 else ""
        groups.append((f"NUM_{group.ffn.upper()}_LAYERS{suffix}", group.repeat, f"layers[{index}].repeat"))
    return groups


def _layer_kinds(context: Context, attention: Block, feed_forward: Block) -> tuple[dict[str, Block], list[Block]]:
    """The layer of each feed-forward kind in the schedule, and all blocks so far, leaves first."""
    spec = context.spec
    kinds = {group.ffn for group in spec.layers}
    layers: dict[str, Block] = {}
    uses_swiglu = "dense" in kinds or ("moe" in kinds and spec.moe().n_shared_experts > 0)
    blocks = [attention] + [feed_forward] * uses_swiglu
    if "dense" in kinds:
        width = context.constants.dim(
            "INTERMEDIATE_SIZE", spec.dense().intermediate_size, "ffn.dense.intermediate_size", axis=Axis.FEED_FORWARD
        )
        layers["dense"] = build_layer(
            context, "DenseLayer", "A layer with a dense feed-forward.", attention, feed_forward, ((WIDTH.name, width),)
        )
    if "moe" in kinds:
        experts, top_k, _ = moe_sizes(context, spec.moe())
        *before, router = build_router(context, spec.moe(), experts, top_k)
        blocks += [*before, router]
        rate = spec.moe().router.balance.bias_update_rate
        if rate is not None:
            blocks.append(build_bias_update(context, rate, experts))
        moe = build_moe(context, spec.moe(), router, feed_forward if spec.moe().n_shared_experts else None)
        blocks.append(moe)
        layers["moe"] = build_layer(context, "MoeLayer", "A layer with a mixture of experts.", attention, moe, ())
    return layers, blocks + list(layers.values())


def _backbone(context: Context, layers: dict[str, Block]) -> Block:
    """Tokens to the last hidden state; then the rotary table if MTP wants it, then the balance loss if there is one."""
    spec, constants = context.spec, context.constants
    balanced = any(len(layer.outputs) > 1 for layer in layers.values())
    block = BlockBuilder("Model", BACKBONE_DOC, class_doc=f"{spec.name}: token ids to logits.", method="backbone")
    tokens = block.input("tokens", context.tokens)
    x = block.add("x", Embedding("embed_tokens", context.vocab_size, context.hidden_size, context.dtype), tokens)
    if spec.embedding_multiplier != 1.0:
        factor = constants.number("EMBEDDING_MULTIPLIER", spec.embedding_multiplier, "embedding_multiplier")
        x = block.add("x", Scale(factor), x)
    rope = block.add("rope", RotaryTable(spec.attention.rope.scaling.kind, rotary_dim(constants, spec)), tokens, x)
    if "ROPE_AMPLITUDE" in {constant.name for constant in constants}:
        rope = block.add("rope", Scale("ROPE_AMPLITUDE"), rope)
    rope = block.add("rope", SpreadPairs(spec.attention.rope.layout, rotary_dim(constants, spec)), rope)
    balance = block.add("balance_loss", ZeroLoss(), x) if balanced else None

    first, start = 0, ""
    for index, (group, (name, _, _)) in enumerate(zip(spec.layers, _schedule(spec), strict=True)):
        count = constants.dim(name, group.repeat, f"layers[{index}].repeat")
        end = f"{start} + {name}" if start else name
        last = index + 1 == len(spec.layers)
        part = "" if len(spec.layers) == 1 else f"[{start}:{'' if last else end}]"
        signature = Signature.of(layers[group.ffn])
        if len(signature.outputs) > 1:
            assert balance is not None
            x, balance = block.add_many(
                ("x", "balance_loss"), RepeatLayersSum(signature, count, first, part), x, rope, balance
            )
        else:
            x = block.add("x", RepeatLayers(signature, count, first, part), x, rope)
        first, start = first + group.repeat, end
    return block.finish(x, *([rope] if spec.mtp else []), *([balance] if balance else []))


def _forward(context: Context, backbone: Block) -> Block:
    block = BlockBuilder("Model", FORWARD_DOC)
    tokens = block.input("tokens", context.tokens)
    x, *_ = block.add_many([v.name for v in backbone.outputs], CallMethod(Signature.of(backbone)), tokens)
    return block.finish(_head(block, context, _final_norm(block, context, x)))


def _final_norm(block: BlockBuilder, context: Context, x: Value) -> Value:
    return block.add("hidden", RmsNorm("norm", context.hidden_size, "NORM_EPS", context.dtype), x)


def _head(block: BlockBuilder, context: Context, hidden: Value, prefix: str = "") -> Value:
    """Logits of normed hidden states."""
    spec = context.spec
    if spec.logit_multiplier != 1.0:
        factor = context.constants.number("LOGIT_MULTIPLIER", spec.logit_multiplier, "logit_multiplier")
        hidden = block.add(f"{prefix}scaled", Scale(factor), hidden)  # multi-token prediction reads `hidden` later
    head = Linear("lm_head", context.hidden_size, context.vocab_size, context.dtype)
    tied = TiedHead("embed_tokens", context.vocab_size)
    return block.add(f"{prefix}logits", tied if spec.tie_word_embeddings else head, hidden)


def _loss(context: Context, backbone: Block, mtp: Block | None) -> Block:
    """Cross-entropy, multi-token prediction and balance, each only where the spec has it."""
    block = BlockBuilder("Model", LOSS_DOC, method="loss")
    tokens, labels = block.input("tokens", context.tokens), block.input("labels", context.tokens)
    x, *rest = block.add_many([v.name for v in backbone.outputs], CallMethod(Signature.of(backbone)), tokens)
    rope = rest.pop(0) if mtp else None
    hidden = _final_norm(block, context, x)
    main = block.add("main_loss", _cross_entropy(context), _head(block, context, hidden), labels)
    parts = {"main": main}
    if mtp is not None and rope is not None and context.spec.mtp is not None:
        state = hidden if context.spec.mtp.hidden == "post_norm" else x
        mtp_loss, losses = _mtp_loss(block, context, mtp, Depth(state, tokens, labels, rope))
        parts["mtp"] = mtp_loss
        rest += losses
    if rest:
        balance = rest[0]
        for other in rest[1:]:
            balance = block.add("balance_loss", Add(), balance, other)
        parts["balance"] = balance
    block.paragraph()
    names = tuple(parts)
    loss = block.add("loss", SumLosses(names), *parts.values()) if len(parts) > 1 else main
    return block.finish(loss, block.add("parts", LossParts(names), *parts.values()))


def _cross_entropy(context: Context) -> CrossEntropy:
    if (z_loss := context.spec.z_loss) is None:
        return CrossEntropy()
    return CrossEntropyAndZLoss(context.constants.number("Z_LOSS", z_loss, "z_loss"))


def _mtp_loss(block: BlockBuilder, context: Context, module: Block, depth: Depth) -> tuple[Value, list[Value]]:
    """lambda / depth * sum of the depths' losses (DeepSeek-V3, equation 25), and the balance losses of their layers."""
    assert context.spec.mtp is not None
    sum_of_depths: Value | None = None
    balance: list[Value] = []
    for index in range(context.spec.mtp.depth):
        depth, hidden, losses = add_depth(block, context, module, index, depth)
        balance = [block.add("mtp_balance_loss", Add(), *balance, *losses)] if balance else losses
        loss = block.add(
            "mtp_loss" if index == 0 else "depth_loss",
            _cross_entropy(context),
            _head(block, context, hidden, "mtp_"),
            depth.labels,
        )
        sum_of_depths = block.add("mtp_loss", Add(), sum_of_depths, loss) if sum_of_depths else loss
    assert sum_of_depths is not None
    weight = context.constants.number("MTP_LOSS_WEIGHT", context.spec.mtp.loss_weight, "mtp.loss_weight")
    depths = context.constants.dim("MTP_DEPTH", context.spec.mtp.depth, "mtp.depth")
    return block.add("mtp_loss", WeighMtpLoss(weight, depths), sum_of_depths), balance


def _init_weights(context: Context) -> Block:
    std = context.constants.number("INITIALIZER_RANGE", context.spec.initializer_range, "initializer_range")
    block = BlockBuilder("Model", INIT_DOC, method="init_weights")
    block.add_many((), InitWeights(std))
    return block.finish()


def _update_biases() -> Block:
    block = BlockBuilder("Model", UPDATE_DOC, method="update_selection_bias")
    block.add_many((), UpdateEveryRouter("Router"))
    return block.finish()
