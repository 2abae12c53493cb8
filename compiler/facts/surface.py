"""What other programs use of a package: the public functions, classes and methods of its modules, and their parameters.

Kernels, what is printed from the graph for decoding and for a training step, and the parts that model.py makes its
Model of are left out: those are the architecture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

INTERNAL = (
    *("kernels/", "infer/batch.py", "infer/decode.py", "infer/prepare.py", "infer/speculation.py"),
    *("train/batch.py", "train/experts.py", "train/forward.py", "train/gradients.py", "train/mesh.py"),
    *("train/parallel.py", "train/plan.py", "train/single.py", "train/stages.py", "train/tensor.py", "train/tied.py"),
    "train/weights.py",
)
ROOT = "model.Model"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CallSignature:
    """Parameters by name; `self` of methods is one like the others."""

    positional: tuple[str, ...]
    keyword_only: frozenset[str]
    required: frozenset[str]

    def accepts_calls_of(self, older: CallSignature) -> bool:
        """Whether what was a right call of the older one still is."""
        same_order = self.positional[: len(older.positional)] == older.positional
        names = {*self.positional, *self.keyword_only}
        return same_order and older.keyword_only <= names and self.required <= older.required


def surface(files: Mapping[str, str]) -> dict[str, CallSignature | None]:
    """Every public name by its path, "infer.engine.Engine.generate", and the signature of what is called."""
    found: dict[str, CallSignature | None] = {}
    for path, text in files.items():
        if path.endswith(".py") and not path.startswith(INTERNAL):
            module = path.removesuffix(".py").replace("/", ".").removesuffix("__init__").rstrip(".")
            names = dict(_public(ast.parse(text).body, f"{module}." if module else ""))
            inside = {name: names[name] for name in names if module != "model" or f"{name}.".startswith(f"{ROOT}.")}
            found |= {module: None, **inside}
    return found


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, CallSignature | None]]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not (node.name.startswith("_") and node.name != "__init__"):
            yield f"{prefix}{node.name}", _signature(node.args) if isinstance(node, Function) else None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, f"{prefix}{node.name}.")


def _signature(given: ast.arguments) -> CallSignature:
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    without = positional[: len(positional) - len(given.defaults)]
    only = [argument.arg for argument in given.kwonlyargs]
    needed = [name for name, default in zip(only, given.kw_defaults, strict=True) if default is None]
    return CallSignature(tuple(positional), frozenset(only), frozenset([*without, *needed]))
