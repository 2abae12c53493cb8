"""train/ of a package that learns from its own answers: functions printed from their graphs, and the files around."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dsc.compiler.emit.classes import holders
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, Helper, helpers, imported, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.emit.serving import function
from dsc.compiler.emit.training import moves_selection_bias
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.dim import T
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes import packed, policy
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.handing import functions_of
from dsc.compiler.passes.policy import Policies, shares_weights
from dsc.compiler.passes.serve import DRAFT
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE, Sharing
from dsc.spec.training import Training

POLICY, PACKED, SHARED = "train/policy.py", "train/packed.py", "train/shared_policy.py"
PLAIN = ("head", "ranks", "questions", "rewards", "rollout", "experience", "grpo_loss", "layout", "learner", "grpo")
SUPERVISED = ("packing", "sft")
REPLAY = "train/replay.py"
OURS = [
    (".head", "log_probabilities"),
    (".replay", "Replay"),
    (".layout", "as_forward"),
    (".experts", EXPERT_PARALLEL),
    *((".plan", name) for name in ("EP", "NODES", "LOCAL")),
]
"""What functions call of the files around them."""
SIZES = {"B": "B batch", "S": "S sequence", "T": f"T = {T.definition}", "C": "C = S"}
PART = {"S": "S tokens of a sequence that are this rank's"}
REFUSAL = "sft and grpo on ranks need {}; compile with it, or start one process"
NO_SEQUENCES = "{} where ranks share sequences; compile with placement.cp 1, or start one process"


@dataclass(frozen=True)
class _Ranks:
    """How functions of modules are printed where ranks share the weights."""

    forwards: tuple[str, ...]
    """The classes whose weights are gathered when their forward runs."""
    narrowed: Mapping[str, str]
    """By class, the one that stands in for it on ranks."""
    experts: tuple[Helper, ...] = ()
    """What experts.py defines."""


ALONE = _Ranks((), {})


def posttraining_files(
    files: FilePrinter,
    policies: Policies | None,
    rows: Graph | None,
    training: Graph,
    step: TrainingStep,
    serving: Graph,
    model: Iterable[Definition],
    captures: bool,
) -> list[File]:
    """`model` is what model.py defines, which these files import; `captures`: whether the engine would capture its
    steps. None where the spec has no rl."""
    rl, sharing = files.spec.rl, step.sharing
    if rl is None:
        return []
    assert policies is not None and rows is not None
    model, shared = list(model), shares_weights(sharing, files.spec.training)
    context = shared and sharing is not None and sharing.cp > 1
    values = {
        "rl": rl,
        "left_out": _left_out(policies.alone, training),
        "guesses": DRAFT in serving.blocks,
        "captures": captures,
        "bias": moves_selection_bias(training),
        "predicts": files.spec.mtp is not None,
        "ahead": files.spec.training.documents == "apart" and files.spec.mtp is not None,
        "sharing": sharing,
        "shared": shared,
        "shared_policy": policies.shared is not None,
        "context": context,
        "refusal": _refusal(sharing, files.spec.training),
        "refused_sft": NO_SEQUENCES.format("sft does not run"),
        "refused_grpo": NO_SEQUENCES.format("rl.ratio sequence is not found") if rl.ratio == "sequence" else "",
    }
    ranks = _Ranks(("Model", *step.whole.layer_kinds), {}) if shared else ALONE
    plain = [f"train/{name}.py" for name in (*PLAIN, *SUPERVISED)] + ([REPLAY] if rl.router_replay else [])
    alone = ranks if policies.shared is None else ALONE
    printed = [
        functions_file(files, POLICY, policies.alone, policy.ROOT, training, model, alone),
        functions_file(files, PACKED, rows, packed.ROOT, training, model, ranks),
        *(files.file(path, path, **values) for path in plain),
    ]
    if policies.shared is not None:
        ranks = _sharing_experts(ranks, step.graph) if sharing is not None and sharing.ep > 1 else ranks
        printed.append(functions_file(files, SHARED, policies.shared, policy.ROOT, training, model, ranks))
    return printed


def _sharing_experts(ranks: _Ranks, graph: Graph) -> _Ranks:
    blocks = {block.key: block for block in graph.methods(EXPERT_PARALLEL)}
    there = tuple(requirements(Graph(blocks, graph.constants)))
    return replace(ranks, narrowed={MOE.partition(".")[0]: EXPERT_PARALLEL}, experts=there)


def _refusal(sharing: Sharing | None, training: Training) -> str:
    """What a start on several ranks says where their layout is none for answers."""
    if sharing is None or shares_weights(sharing, training):
        return ""
    if sharing.pp > 1:
        return REFUSAL.format("placement.pp 1")
    shared = next((f"placement.{name} 1" for name in ("tp", "etp") if getattr(sharing, name) > 1), None)
    return REFUSAL.format(shared or "training.documents joined")


def functions_file(
    files: FilePrinter,
    path: str,
    graph: Graph,
    root: str,
    training: Graph,
    model: Iterable[Definition],
    ranks: _Ranks,
) -> File:
    """The blocks of a graph that are functions of the modules of the model."""
    printer = Printer(files.templates, owner="module")
    blocks = functions_of(graph, root)
    only = Graph({block.key: block for block in blocks}, graph.constants)
    parts = helpers(only, printer, besides={*requirements(training), *ranks.experts})
    body = module_body([*parts, *(_function(block, printer, root, ranks) for block in blocks)])
    used = names(body) | {"Tensor"}
    offered = [*imported(only, "..", "."), *(("..model", part.name) for part in model), *OURS]
    offered += [(".experts", helper.name) for helper in ranks.experts if "." not in helper.name]
    return files.file(
        path,
        "train/policy.py" if path == SHARED else path,
        replay=files.spec.rl is not None and files.spec.rl.router_replay,
        shared=path == SHARED,
        experts=bool(ranks.experts),
        legend=legend(graph.constants.symbols(), body, SIZES | (PART if "own_part" in used else {})),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def _function(block: Block, printer: Printer, root: str, ranks: _Ranks) -> Definition:
    """With what ranks do before and after it, where they do."""
    name, text = function(block, printer, ranks.narrowed.get(block.class_name, ""))
    gathers = block.class_name in ranks.forwards and block.key in {root, f"{block.class_name}.forward"}
    return Definition(name, f"@as_forward\n{text}" if gathers else text)


def _left_out(graph: Graph, training: Graph) -> tuple[str, ...]:
    """The model's parts that no answer's probability depends on."""
    owner = policy.ROOT.partition(".")[0]
    reached = {block.key: block for _, block in graph.executions(policy.ROOT) if block.class_name == owner}
    kept = {op.attribute() for op in holders((*functions_of(graph, policy.ROOT), *reached.values()))}
    every = {op.attribute(): None for op in holders(training.methods(training.root))}
    return tuple(name for name in every if name is not None and name not in kept)
