"""train/ of a package: what a step runs, cut from the graph; how ranks share it; data, loop and log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsc.compiler.emit.classes import Method, holders, method
from dsc.compiler.emit.documents import documents_file, from_documents
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, imported, recompute_functions
from dsc.compiler.emit.overlap import overlap_files
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.emit.shares import context_file, experts_files, sequence_ranks, tensor_file
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.dim import Axis
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.hf import family
from dsc.compiler.hf.quantization import write_linear
from dsc.compiler.ops.batch import ShareOfLabels, StackLosses
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.projection import BiasedLinear, Embedding, TiedHead
from dsc.compiler.ops.router import UpdateEveryRouter
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.recompute import drops
from dsc.compiler.passes.shard import MOE, SENDS, Sharing
from dsc.compiler.passes.stages import MTP_WEIGHT, Stage
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear
from dsc.spec.training import Spike, Training

PLAIN = tuple(
    f"train/{name}.py" for name in ("optimizer", "checkpoint", "curves", "data", "shards", "documents", "stop")
)


@dataclass(frozen=True)
class _StageClass:
    """What templates/train/stage.py.jinja prints."""

    name: str
    doc: str
    layers: bool
    attributes: tuple[tuple[str, str], ...]
    methods: tuple[Method, ...]


@dataclass(frozen=True)
class _Stored:
    """What templates/train/export.py.jinja prints of weights in FP8."""

    names: str
    """A set of what the layers are called."""
    config: str
    powers: bool
    """Scales are powers of two."""


@dataclass(frozen=True)
class _Guard:
    """What templates/train/guard.py.jinja prints."""

    not_finite: str
    spike: Spike | None

    @property
    def skips(self) -> bool:
        return "skip" in (self.not_finite, self.spike and self.spike.action)

    @property
    def state(self) -> str:
        kept = [*(["seen", "spikes"] if self.spike else []), *(["skipped", "in_a_row"] if self.skips else [])]
        return ", ".join(f'"guard.{name}": self.{name}' for name in kept)

    @property
    def counts(self) -> str:
        counted = [*(["skipped"] if self.skips else []), *(["spikes"] if self.spike else [])]
        return ", ".join(f'"{name}": int(self.{name})' for name in counted)


def _guard(training: Training) -> _Guard | None:
    """None where a step that is not finite ends the run and no other is looked at."""
    plain = training.not_finite == "stop" and training.spike is None
    return None if plain else _Guard(training.not_finite, training.spike)


def training_files(
    files: FilePrinter, step: TrainingStep, training: Graph, plain: Graph, model: Sequence[Definition]
) -> list[File]:
    """`model` is what model.py defines, which the others import."""
    bias = moves_selection_bias(training)
    sharing, guard, recompute = step.sharing, _guard(files.spec.training), drops(step.recompute)
    tied = len(_readers(step)) > 1
    apart = files.spec.training.documents == "apart"
    mtp, ramp = files.spec.mtp, files.spec.training.batch_ramp is not None
    values = {"bias": bias, "sharing": sharing, "tied": tied, "guard": guard, "recompute": recompute, "ramp": ramp}
    values |= {"apart": apart, "ahead": apart and mtp is not None, "weighs": mtp is not None and mtp.later is not None}
    values["compiles"] = compiles(step)
    printed = [*_recompute_file(files, step), *([documents_file(files, step.graph, model)] if apart else [])]
    biases = any(isinstance(op, BiasedLinear) for op in holders(tuple(training.blocks.values())))
    printed += [stages_file(files, step, model), files.file("train/init.py", "train/init.py", biases=biases)]
    slices = sharing is not None and sharing.etp > 1
    printed += [
        files.file(path, path, apart=apart, ramp=ramp, weighs=values["weighs"], slices=slices) for path in PLAIN
    ]
    optional = [f"train/{name}.py" for name, used in (("guard", guard), ("ramp", ramp)) if used]
    paths = ("train/single.py", "train/log.py", "train/train.py", *optional)
    printed += [files.file(path, path, **values) for path in paths]
    if values["compiles"]:
        printed.append(files.file("train/compiled.py", "train/compiled.py", **values, layer_names=_layer_names(step)))
    stacks, fp8 = _stacks_experts(plain), _stored_in_fp8(files.spec, plain)
    printed.append(files.file("train/export.py", "train/export.py", experts=stacks, mtp=mtp is not None, fp8=fp8))
    return printed if sharing is None else [*printed, *sharing_files(files, step, sharing, plain, model, values)]


def compiles(step: TrainingStep) -> bool:
    """Whether there is --compile: in one process, or where ranks share nothing but weights.

    What is compiled saves what it likes, so it keeps to no plan of what to recompute; codes that a step keeps are told
    apart by objects, which it does not have; and its gradients are one node, while the V-shaped schedules ask for two.
    """
    alone = step.sharing is None or step.sharing.dp == step.sharing.world
    dealt = step.sharing is not None and step.sharing.copy > 1
    return alone and not (dealt or step.recompute or _keeps_codes(step))


def _keeps_codes(step: TrainingStep) -> bool:
    return step.sharing is not None and step.sharing.keeps_codes and multiplies_in_fp8(step.graph)


def moves_selection_bias(training: Graph) -> bool:
    """Whether a step ends with a move of the routers' selection biases."""
    return any(isinstance(node.op, UpdateEveryRouter) for block in training.blocks.values() for node in block.nodes())


def multiplies_in_fp8(graph: Graph) -> bool:
    return any(node.op.in_fp8 for block in graph.blocks.values() for node in block.nodes())


def _stored_in_fp8(spec: ModelSpec, plain: Graph) -> _Stored | None:
    """None where some products are in bfloat16: who loads a quantized checkpoint takes all layers for quantized."""
    linear, chosen = spec.precision.linear, spec.precision.fp8_products()
    ops = [op for block in plain.blocks.values() for node in block.nodes() for op in node.op.holders()]
    wide = any(isinstance(op, BiasedLinear) or op.product not in {None, *chosen} for op in ops)
    if not isinstance(linear, Fp8BlockLinear) or wide or family(spec) is None:
        return None
    names = sorted({str(op.attribute()) for op in ops if op.product})
    config = write_linear(linear)["quantization_config"]
    return _Stored(f"{{{', '.join(map(repr, names))}}}", repr(config), linear.scale == "ue8m0")


def _stacks_experts(plain: Graph) -> bool:
    """Whether a weight is that of many experts, one behind the other."""
    return any(len(parameter.type.shape) == 3 for parameter in plain.parameters().values())


def _recompute_file(files: FilePrinter, step: TrainingStep) -> Iterator[File]:
    if drops(step.recompute):
        yield files.file("train/recompute.py", "train/recompute.py")
    elif step.recompute:
        counts = "running_again" in recompute_functions(step.graph)
        yield files.file("train/recompute.py", "train/layers_again.py", counts=counts)


def _readers(step: TrainingStep) -> tuple[int, ...]:
    """The stages that hold the embedding."""
    return tuple(index for index, stage in enumerate(step.stages) if _reads_embedding(stage))


def stages_file(files: FilePrinter, step: TrainingStep, model: Iterable[Definition]) -> File:
    """The whole model and each kind of stage as classes."""
    printer = Printer(files.templates)
    owners: dict[str, str] = {}
    kinds = {stage.block.class_name: stage for stage in step.stages}
    template = files.templates.get_template("train/stage.py.jinja")
    graph = step.graph
    pipeline, sequences = len(step.stages) > 1, sequence_ranks(step.sharing)
    texts = [template.render({"class": _stage_class(step, step.whole, printer, {})}, pipeline=False, sequences=None)]
    for stage in kinds.values():
        described = _stage_class(step, stage, printer, owners)
        texts.append(template.render({"class": described}, pipeline=pipeline, sequences=sequences))
    body = "\n\n\n".join(text.strip("\n") for text in texts) + "\n"
    losses, depths = _losses(graph.blocks[step.whole.block.key])
    weighs = any(value.name == MTP_WEIGHT for value in step.whole.block.inputs)
    used = names(body) | {"torch", "Tensor", "nn", "Model"} | ({"dist"} if sequences and "TP" in sequences else set())
    offered = [*imported(graph, "..", "."), *from_documents(graph, printer, model := list(model)), (".plan", "TP")]
    return files.file(
        "train/stages.py",
        "train/stages.py",
        ahead=files.spec.training.documents == "apart" and files.spec.mtp is not None,
        weighs=weighs,
        pipeline=pipeline,
        sequences=sequences,
        whole=step.stages[0].block.class_name if sequences else "",
        depths=depths + 1,
        counts=_counts_text(depths),
        legend=legend(graph.constants.symbols(), body),
        imports=imports(used),
        local=local_imports(used, [*offered, *(("..model", part.name) for part in model)]),
        loss_names=losses,
        body=body,
        stages=step.stages,
        results={kind: _results(stage) for kind, stage in kinds.items()},
    )


def _losses(block: Block) -> tuple[tuple[str, ...], int]:
    """The names of the losses, and how many cross-entropies there are."""
    (names_,) = (node.op.names for node in block.nodes() if isinstance(node.op, StackLosses))
    return ("loss", *names_), sum(isinstance(node.op, ShareOfLabels) for node in block.nodes())


def _counts_text(depths: int) -> str:
    ahead = {1: "", 2: ", for the next token and for the one after it"}.get(depths, f", for {depths} tokens ahead")
    return f"its labels{ahead}; its micro-batches"


def _stage_class(step: TrainingStep, stage: Stage, printer: Printer, owners: dict[str, str]) -> _StageClass:
    """`owners`: by module, the class of the first stage that has it; a later one has a copy of its own."""
    block = step.graph.blocks[stage.block.key]
    attributes: dict[str, str] = {}
    for op in holders((stage.block,)):
        name = op.embedding if isinstance(op, TiedHead) else op.attribute()
        if name is None or name == "layers" or name in attributes:
            continue
        if owners.setdefault(name, block.class_name) == block.class_name:
            attributes[name] = f"model.{name}"
        else:
            attributes[name] = _declaration(step, name, printer)
    layers = any(op.attribute() == "layers" for op in holders((stage.block,)))
    methods = (method(block, printer),)
    return _StageClass(block.class_name, block.class_doc, layers, tuple(attributes.items()), methods)


def _declaration(step: TrainingStep, name: str, printer: Printer) -> str:
    """How a module that a stage borrows from another is made."""
    ops = (node.op for stage in step.stages for node in stage.block.nodes())
    found = next(op for op in ops if op.attribute() == name and isinstance(op, Embedding))
    text = printer.declaration(found)
    assert text is not None
    return text


def _results(stage: Stage) -> tuple[str, ...]:
    """What a stage returns, by the names that templates/train/stages.py.jinja has for it."""
    kinds = {3: "hidden", 0: "loss", 1: "losses"}
    return tuple(kinds[len(tensor(value.type).shape)] for value in stage.block.outputs)


def sharing_files(
    files: FilePrinter,
    step: TrainingStep,
    sharing: Sharing,
    plain: Graph,
    model: Sequence[Definition],
    values: Mapping[str, object],
) -> list[File]:
    """plan.py, parallel.py and what it stands on, and files of what ranks share of a module."""
    experts, sequences = sharing.copy > 1, sequence_ranks(sharing)
    by_layer = sharing.pp > 1 and sharing.zero > 1
    values = {
        **values,
        "pipeline": sharing.pp > 1,
        "several": len(step.stages) > sharing.pp,
        "experts": experts,
        "slices": sharing.etp > 1,
        "copy": " * ".join(name for name, size in (("EP", sharing.ep), ("ETP", sharing.etp)) if size > 1),
        "sequences": sequences,
        "context": sharing.cp > 1,
        "tensor": sharing.tp > 1,
        "overlap": step.turns is not None,
        "by_layer": by_layer,
        "splits": by_layer and step.turns is None and sharing.splits_backward,
        "shared": "_".join(name for name in ("dp", "cp", "tp") if name == "dp" or getattr(sharing, name) > 1),
        "codes": _keeps_codes(step),
    }
    printed = [
        files.file("train/plan.py", "train/plan.py", **values, rank_of_stage=_rank_of_stage(sharing)),
        _parallel_file(files, step, values),
        _weights_file(files, step, plain, values),
        *(files.file(path, path, **values) for path in ("train/mesh.py", "train/batch.py", "train/gradients.py")),
    ]
    if values["tied"]:
        printed.append(files.file("train/tied.py", "train/tied.py", readers=_readers(step)))
    if sharing.pp > 1:
        printed.append(files.file("train/received.py", "train/received.py", **values, sends=SENDS))
        printed.append(files.file("train/forward.py", "train/forward.py"))
    if values["splits"]:
        printed.append(files.file("train/split.py", "train/split.py", **values))
    if sharing.etp > 1:
        printed.append(files.file("train/slices.py", "train/slices.py", **values, cut=_cut_by_columns(plain)))
    if experts:
        printed += experts_files(files, step.graph, plain, model, sharing)
    if sharing.cp > 1:
        printed.append(context_file(files, step.graph, model, sharing.tp > 1))
    if sharing.tp > 1:
        printed.append(tensor_file(files, step, plain, model))
    return [*printed, *overlap_files(files, step, model)]


def _cut_by_columns(plain: Graph) -> str:
    """Stacks of experts whose columns are the experts' width, as a set."""
    stacks = [op for op in holders(tuple(plain.blocks.values())) if isinstance(op, GroupedLinear)]
    names_ = sorted({op.name for op in stacks if Axis.EXPERT_WIDTH in op.in_features.axes()})
    return f"{{{', '.join(map(repr, names_))}}}".replace("'", '"')


def _parallel_file(files: FilePrinter, step: TrainingStep, values: Mapping[str, object]) -> File:
    moe_layers = [name for name in step.whole.layer_kinds if MOE in _callees(step.graph, f"{name}.forward")]
    used = ["Model", *(moe_layers if values["experts"] else []), *(["Router"] if values["bias"] else [])]
    return files.file(
        "train/parallel.py",
        "train/parallel.py",
        **values,
        whole=step.stages[0].block.class_name if values["sequences"] else step.whole.block.class_name,
        moe_layers=" | ".join(moe_layers),
        model_names=sorted(used),
    )


def _weights_file(files: FilePrinter, step: TrainingStep, plain: Graph, values: Mapping[str, object]) -> File:
    layers = step.whole.layer_kinds
    return files.file(
        "train/weights.py",
        "train/weights.py",
        **values,
        stacked=_stacks_experts(plain),
        layers=f"({layers[0]},)" if len(layers) == 1 else f"({', '.join(layers)})",
        layer_names=_layer_names(step),
    )


def _layer_names(step: TrainingStep) -> list[str]:
    """The classes of layers."""
    return sorted(step.whole.layer_kinds)


def _rank_of_stage(sharing: Sharing) -> str:
    """As an expression of PP."""
    once = tuple(range(sharing.pp))
    if sharing.rank_of_stage == (*once, *reversed(once)):
        return "(*range(PP), *reversed(range(PP)))"
    turns = len(sharing.rank_of_stage) // sharing.pp
    assert sharing.rank_of_stage == once * turns, sharing.rank_of_stage
    return f"tuple(range(PP)){f' * {turns}' if turns > 1 else ''}"


def _reads_embedding(stage: Stage) -> bool:
    return any(isinstance(op, Embedding | TiedHead) for op in holders((stage.block,)))


def _callees(graph: Graph, key: str) -> set[str]:
    return {block.key for _, block in graph.executions(key)}
