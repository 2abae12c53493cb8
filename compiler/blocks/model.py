"""The whole model: which blocks there are, and the methods of its root class."""

from dsc.compiler.blocks.context import TOKENS, Context, tables
from dsc.compiler.blocks.mtp import Depth, add_depth, build_mtp
from dsc.compiler.blocks.schedule import Run, build_layers, runs
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Axis, Dim, Int
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.call import CallMethod, RepeatLayers, RepeatLayersSum, Signature
from dsc.compiler.ops.elementwise import Add, Scale
from dsc.compiler.ops.init import InitWeights, InitWeightsAndBiases
from dsc.compiler.ops.loss import CrossEntropy, CrossEntropyAndZLoss, LossParts, SumLosses, WeighMtpLoss, ZeroLoss
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import BiasedLinear, Embedding, Linear, TiedHead
from dsc.compiler.ops.rope import RotaryTable, SpreadPairs
from dsc.compiler.ops.router import UpdateEveryRouter
from dsc.spec.model import Layer, ModelSpec
from dsc.spec.precision import Fp8BlockLinear
from dsc.spec.rl import ReinforcementLearning

DTYPES = {"bf16": DType.BF16, "fp32": DType.FP32, "fp8": DType.FP8}
RENAMED = {"kl": "KL_COEFFICIENT"}
FORWARD_DOC = "Next-token logits [B, S, W] for tokens [B, S]."
BACKBONE_DOC = "The layers: tokens [B, S] to the last hidden state [B, S, D], before the final norm."
LOSS_DOC = "The training loss and its parts. labels[b, s] is the token after tokens[b, s]; -100 leaves a position out."
INIT_DOC = "Initialize: matrices from a normal distribution, norms to one, biases and counts to zero."
UPDATE_DOC = "After each optimizer step: move every router's selection bias towards an even load."


def build_graph(spec: ModelSpec) -> Graph:
    """The graph of a checked spec, before any pass."""
    context, schedule = _context(spec)
    layers, blocks = build_layers(context, schedule)
    last = layers[spec.schedule[-1]]
    mtp = build_mtp(context, last) if spec.mtp else None
    backbone = _backbone(context, schedule, layers, [value.name for value in last.inputs] if mtp else [])
    blocks += [mtp] if mtp else []
    biased = any(isinstance(node.op, BiasedLinear) for block in blocks for node in block.nodes())
    blocks += [_init_weights(context, biased), backbone, _forward(context, backbone), _loss(context, backbone, mtp)]
    routers = tuple(block.class_name for block in blocks if block.method == "update_selection_bias")
    blocks += [_update_biases(routers)] if routers else []
    return Graph({block.key: block for block in blocks}, context.constants)


def _context(spec: ModelSpec) -> tuple[Context, tuple[Run, ...]]:
    constants = Constants()
    vocab = constants.dim("VOCAB_SIZE", spec.vocab_size, "vocab_size", "W", Axis.VOCABULARY)
    hidden = constants.dim("HIDDEN_SIZE", spec.hidden_size, "hidden_size", "D")
    constants.number("MAX_POSITION_EMBEDDINGS", spec.max_position_embeddings, "max_position_embeddings")
    constants.number("INITIALIZER_RANGE", spec.initializer_range, "initializer_range")
    constants.number("NORM_EPS", spec.norm.eps, "norm.eps")
    schedule = runs(spec, constants)
    dtype, cache_dtype = (DTYPES[name] for name in (spec.precision.parameters, spec.precision.kv_cache))
    ropes = tables(constants, spec)
    if isinstance(linear := spec.precision.linear, Fp8BlockLinear):
        constants.number("WEIGHT_BLOCK", tuple(linear.weight_block), "precision.linear.weight_block")
    constants.number("SEQUENCE_LENGTH", spec.workload.sequence_length, "workload.sequence_length")
    if (ramp := spec.training.batch_ramp) is not None:
        constants.number("RAMP_START", ramp.start, "training.batch_ramp.start")
        constants.number("RAMP_INCREMENT", ramp.increment, "training.batch_ramp.increment")
        constants.number("RAMP_TOKENS", ramp.tokens, "training.batch_ramp.tokens")
    if spec.rl is not None:
        _learning_numbers(constants, spec.rl)
    return Context(spec, constants, dtype, cache_dtype, vocab, hidden, ropes), schedule


def _learning_numbers(constants: Constants, rl: ReinforcementLearning) -> None:
    """What the package's train/ reads of rl; its choices between formulas are no numbers."""
    numbers = {
        "group_size": rl.group_size,
        "max_new_tokens": rl.max_new_tokens,
        "temperature": rl.temperature,
        "clip_low": rl.clip_low,
        "clip_high": rl.clip_high,
        "kl": rl.kl,
        "reference_refresh": rl.reference_refresh,
        "epochs": rl.epochs,
        "importance_cap": rl.importance_cap,
    }
    for key, number in numbers.items():
        if number is not None:
            constants.number(RENAMED.get(key, key.upper()), number, f"rl.{key}")
    if rl.length_penalty is not None:
        constants.number("PENALTY_BUFFER", rl.length_penalty.buffer, "rl.length_penalty.buffer")
        constants.number("PENALTY_WEIGHT", rl.length_penalty.weight, "rl.length_penalty.weight")


def _backbone(context: Context, schedule: tuple[Run, ...], layers: dict[Layer, Block], mtp_wants: list[str]) -> Block:
    """Tokens to the last hidden state; then the rotary tables that MTP wants, then the balance loss if there is one."""
    spec = context.spec
    block = BlockBuilder("Model", BACKBONE_DOC, class_doc=f"{spec.name}: token ids to logits.", method="backbone")
    tokens = block.input("tokens", context.tokens)
    x = block.add("x", Embedding("embed_tokens", context.vocab_size, context.hidden_size, context.dtype), tokens)
    if spec.embedding_multiplier != 1.0:
        factor = context.constants.number("EMBEDDING_MULTIPLIER", spec.embedding_multiplier, "embedding_multiplier")
        x = block.add("x", Scale(factor), x)
    ropes = _ropes(block, context, tokens, x)
    balanced = any(len(layer.outputs) > 1 for layer in layers.values())
    balance = block.add("balance_loss", ZeroLoss(), x) if balanced else None

    given = {TOKENS: tokens, **ropes}
    start: Dim = Int(0)
    first = 0
    for index, run in enumerate(schedule):
        signature = Signature.of(layers[run.kinds[0]])
        classes = tuple(layers[kind].class_name for kind in run.kinds)
        end = start + run.count * len(classes)
        part = "" if len(schedule) == 1 else f"[{start if index else ''}:{'' if index + 1 == len(schedule) else end}]"
        inputs = [x, *(given[name] for name in signature.names[1:])]
        if len(signature.outputs) > 1:
            assert balance is not None
            op = RepeatLayersSum(signature, classes, run.count, first, part)
            x, balance = block.add_many(("x", "balance_loss"), op, *inputs, balance)
        else:
            x = block.add("x", RepeatLayers(signature, classes, run.count, first, part), *inputs)
        start, first = end, end.value()
    shared = [table for name, table in ropes.items() if name in mtp_wants]
    return block.finish(x, *shared, *([balance] if balance else []))


def _ropes(block: BlockBuilder, context: Context, tokens: Value, x: Value) -> dict[str, Value]:
    """The rotary tables by name."""
    found: dict[str, Value] = {}
    for table in context.ropes.values():
        if table.name not in found:
            op = RotaryTable(table.rope.scaling.kind, table.rotary_dim, table.prefix)
            rope = block.add(table.name, op, tokens, x)
            if table.amplitude is not None:
                rope = block.add(table.name, Scale(table.amplitude), rope)
            spread = SpreadPairs(table.rope.layout, table.rotary_dim, table.layout_prefix)
            found[table.name] = block.add(table.name, spread, rope)
    return found


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
    tables = {table.name: rest.pop(0) for table in rest[:] if table.name in context.offered} if mtp else {}
    hidden = _final_norm(block, context, x)
    main = block.add("main_loss", _cross_entropy(context), _head(block, context, hidden), labels)
    parts = {"main": main}
    if mtp is not None and context.spec.mtp is not None:
        state = hidden if context.spec.mtp.hidden == "post_norm" else x
        mtp_loss, losses = _mtp_loss(block, context, mtp, Depth(state, tokens, labels, tables))
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
    if (later := context.spec.mtp.later) is not None:
        context.constants.number("MTP_LATER_AFTER_TOKENS", later.after_tokens, "mtp.later.after_tokens")
        context.constants.number("MTP_LATER_LOSS_WEIGHT", later.loss_weight, "mtp.later.loss_weight")
    depths = context.constants.dim("MTP_DEPTH", context.spec.mtp.depth, "mtp.depth")
    return block.add("mtp_loss", WeighMtpLoss(weight, depths), sum_of_depths), balance


def _init_weights(context: Context, biased: bool) -> Block:
    std = context.constants.number("INITIALIZER_RANGE", context.spec.initializer_range, "initializer_range")
    block = BlockBuilder("Model", INIT_DOC, method="init_weights")
    block.add_many((), InitWeightsAndBiases(std) if biased else InitWeights(std))
    return block.finish()


def _update_biases(routers: tuple[str, ...]) -> Block:
    block = BlockBuilder("Model", UPDATE_DOC, method="update_selection_bias")
    block.add_many((), UpdateEveryRouter(routers))
    return block.finish()
