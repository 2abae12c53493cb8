"""train/ of a package that learns from its own answers: functions printed from their graphs, and the files around."""

from __future__ import annotations

from collections.abc import Iterable

from dsc.compiler.emit.classes import holders
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.emit.serving import function
from dsc.compiler.emit.training import moves_selection_bias
from dsc.compiler.graph.dim import T
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes import packed
from dsc.compiler.passes import policy as policies
from dsc.compiler.passes.handing import functions_of
from dsc.compiler.passes.serve import DRAFT

POLICY, PACKED = "train/policy.py", "train/packed.py"
PLAIN = ("head", "ranks", "questions", "rewards", "rollout", "experience", "grpo_loss", "learner", "grpo")
SUPERVISED = ("packing", "sft")
REPLAY = "train/replay.py"
OURS = [(".head", "log_probabilities"), (".replay", "Replay")]
"""What functions call of the files around them."""
SIZES = {"B": "B batch", "S": "S sequence", "T": f"T = {T.definition}", "C": "C = S"}


def posttraining_files(
    files: FilePrinter,
    policy: Graph | None,
    rows: Graph | None,
    training: Graph,
    serving: Graph,
    model: Iterable[Definition],
) -> list[File]:
    """`model` is what model.py defines, which these files import. None where the spec has no rl."""
    rl = files.spec.rl
    if rl is None:
        return []
    assert policy is not None and rows is not None
    model = list(model)
    values = {
        "rl": rl,
        "left_out": _left_out(policy, training),
        "guesses": DRAFT in serving.blocks,
        "bias": moves_selection_bias(training),
        "predicts": files.spec.mtp is not None,
        "ahead": files.spec.training.documents == "apart" and files.spec.mtp is not None,
    }
    plain = [f"train/{name}.py" for name in (*PLAIN, *SUPERVISED)] + ([REPLAY] if rl.router_replay else [])
    return [
        functions_file(files, POLICY, policy, policies.ROOT, training, model),
        functions_file(files, PACKED, rows, packed.ROOT, training, model),
        *(files.file(path, path, **values) for path in plain),
    ]


def functions_file(
    files: FilePrinter, path: str, graph: Graph, root: str, training: Graph, model: Iterable[Definition]
) -> File:
    """The blocks of a graph that are functions of the modules of the model."""
    printer = Printer(files.templates, owner="module")
    blocks = functions_of(graph, root)
    only = Graph({block.key: block for block in blocks}, graph.constants)
    parts = helpers(only, printer, besides=set(requirements(training)))
    body = module_body([*parts, *(function(block, printer) for block in blocks)])
    used = names(body) | {"Tensor"}
    offered = [*imported(only, "..", "."), *(("..model", part.name) for part in model), *OURS]
    return files.file(
        path,
        path,
        replay=files.spec.rl is not None and files.spec.rl.router_replay,
        legend=legend(graph.constants.symbols(), body, SIZES),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def _left_out(policy: Graph, training: Graph) -> tuple[str, ...]:
    """The model's parts that no answer's probability depends on."""
    kept = {op.attribute() for op in holders(functions_of(policy, policies.ROOT))}
    every = {op.attribute(): None for op in holders(training.methods(training.root))}
    return tuple(name for name in every if name is not None and name not in kept)
