"""train/ of a package: the plan's constants, the stages cut from the graph, experts over ranks, and the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsc.compiler.emit.classes import Method, describe, method
from dsc.compiler.emit.model import helpers, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import constants, defined_names, imports, legend, used_names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.dim import Symbol
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, tensor
from dsc.compiler.passes.stages import Stage

RUNTIME = {"B": Symbol("batch"), "S": Symbol("length")}
COLLECTIVES = "torch.distributed._functional_collectives"


@dataclass(frozen=True)
class StageClass:
    """What templates/train/stage.py.jinja prints."""

    name: str
    doc: str
    layers: bool
    attributes: tuple[tuple[str, str], ...]
    methods: tuple[Method, ...]
    results: tuple[tuple[str, str], ...]


def stage_class(stage: Stage, printer: Printer, owner: dict[str, str]) -> StageClass:
    """`owner`: the class of the stage that has each module; others hold a copy."""
    block = stage.block
    attributes = []
    for op in (holder for node in block.nodes() for holder in node.op.holders()):
        name = op.attribute() or getattr(op, "embedding", None)
        if name is None or name == "layers" or name in dict(attributes):
            continue
        mine = owner.setdefault(name, block.class_name) == block.class_name
        attributes.append((name, f"model.{name}" if mine else printer.declaration(op) or ""))
    results = tuple(_result(value.type) for value in block.outputs)
    layers = any(op.attribute() == "layers" for node in block.nodes() for op in node.op.holders())
    return StageClass(block.class_name, block.class_doc, layers, tuple(attributes), (method(block, printer),), results)


def _result(type: object) -> tuple[str, str]:
    found = tensor(type)  # type: ignore[arg-type]
    shape = ", ".join(str(dim.substitute(RUNTIME)) for dim in found.shape)
    return f"({shape},)" if len(found.shape) == 1 else f"({shape})", "wide" if len(found.shape) < 2 else "dtype"
