"""train/ of a package that learns from its own answers: the policy printed from its graph, and the files around it."""

from __future__ import annotations

from collections.abc import Iterable

from dsc.compiler.emit.classes import holders
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, kernel_functions, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.emit.serving import function
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.router import UpdateEveryRouter
from dsc.compiler.passes.policy import functions_of
from dsc.compiler.passes.serve import DRAFT

POLICY = "train/policy.py"
PLAIN = ("head", "ranks", "questions", "rewards", "rollout", "experience", "grpo_loss", "learner", "grpo", "sft")
REPLAY = "train/replay.py"


def posttraining_files(
    files: FilePrinter, policy: Graph, training: Graph, serving: Graph, model: Iterable[Definition]
) -> list[File]:
    """`model` is what model.py defines, which these files import."""
    rl = files.spec.rl
    assert rl is not None
    values = {
        "rl": rl,
        "left_out": _left_out(policy, training),
        "guesses": DRAFT in serving.blocks,
        "bias": _has_bias(training),
    }
    plain = [f"train/{name}.py" for name in PLAIN] + ([REPLAY] if rl.router_replay else [])
    return [policy_file(files, policy, training, model), *(files.file(path, path, **values) for path in plain)]


def policy_file(files: FilePrinter, policy: Graph, training: Graph, model: Iterable[Definition]) -> File:
    printer = Printer(files.templates, owner="module")
    blocks = functions_of(policy)
    only = Graph({block.key: block for block in blocks}, policy.constants)
    parts = helpers(only, printer, besides=set(requirements(training)))
    body = module_body([*parts, *(function(block, printer) for block in blocks)])
    used = names(body) | {"Tensor"}
    offered = [(f"..kernels.{module}", name) for module, name in kernel_functions(only)]
    offered += [("..model", part.name) for part in model]
    offered += [(".head", "log_probabilities"), (".replay", "Replay")]
    return files.file(
        POLICY,
        POLICY,
        replay=files.spec.rl is not None and files.spec.rl.router_replay,
        legend=legend(policy.constants.symbols(), body),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def _has_bias(training: Graph) -> bool:
    """Whether pre-training moves a selection bias after each step."""
    return any(isinstance(node.op, UpdateEveryRouter) for block in training.blocks.values() for node in block.nodes())


def _left_out(policy: Graph, training: Graph) -> tuple[str, ...]:
    """The model's parts that no answer's probability depends on."""
    kept = {op.attribute() for op in holders(functions_of(policy))}
    every = {op.attribute(): None for op in holders(training.methods(training.root))}
    return tuple(name for name in every if name is not None and name not in kept)
