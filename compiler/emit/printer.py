"""Nodes to lines: the templates of templates/ops, one for each op kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import cache_from_source
from pathlib import Path

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemBytecodeCache,
    PackageLoader,
    StrictUndefined,
    Template,
)

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.op import Op
from dsc.compiler.graph.types import TensorType

WIDTH = 120
INDENT = 8


@cache
def environment(extra: BaseLoader | None = None) -> Environment:
    """The templates of the package; `extra` is looked at first."""
    package = PackageLoader("dsc.templates", "")
    return Environment(
        loader=ChoiceLoader([extra, package]) if extra else package,
        auto_reload=False,  # nobody edits a template while the compiler runs
        bytecode_cache=None if extra else compiled_templates(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Python, not HTML; every string of a spec that is printed matches NAME_PATTERN
    )


def compiled_templates() -> FileSystemBytecodeCache | None:
    """Templates compiled once, kept as Python keeps its modules: in __pycache__, unless Python is told to keep none."""
    folder = Path(cache_from_source(str(files("dsc.templates") / "__init__.py"))).parent
    if sys.dont_write_bytecode or not os.access(folder, os.W_OK):
        return None
    return FileSystemBytecodeCache(str(folder), f"%s.jinja-{version('jinja2')}.{sys.implementation.cache_tag}.cache")


@dataclass(frozen=True)
class Printer:
    """Prints nodes, with `owner` as the name of the module that holds their parameters."""

    templates: Environment
    owner: str = "self"

    def body(self, block: Block, doc: str) -> list[str]:
        """The lines of a method, its return included."""
        lines = [f'"""{doc}"""'] if doc else []
        nodes = block.nodes()
        returned = bool(nodes) and nodes[-1].outputs == block.outputs and self._is_line(nodes[-1])
        for node in nodes:
            lines += [""] if node.paragraph else []
            lines += self._statement(block, node, returned and node is nodes[-1])
        if block.outputs and not returned:
            lines.append(f"return {', '.join(value.name for value in block.outputs)}")
        return lines

    def once(self, block: Block, node: Node, kept: Collection[Value]) -> list[str]:
        """The lines of a node that runs when weights are prepared; what the body reads is kept as an attribute."""
        names = {value: f"self.{value.name}" if value in kept else value.name for value in block.prepared}
        outs, inputs = ([names[value] for value in values] for values in (node.outputs, node.inputs))
        return self._lines(node, outs, inputs, _shapes(node, node.outputs))

    def declaration(self, op: Op) -> str | None:
        """The expression that makes the op's attribute, if it has one."""
        return self._block(op, "declare", {}) if op.attribute() is not None else None

    def override(self, op: Op) -> str:
        """The method of nn.Module that the op's class replaces, if it does."""
        return self._block(op, "override", {}).strip("\n") if "override" in self._template(op).blocks else ""

    def _is_line(self, node: Node) -> bool:
        return "line" in self._template(node.op).blocks

    def _statement(self, block: Block, node: Node, returned: bool) -> list[str]:
        used = {value for other in block.nodes() for value in other.inputs} | set(block.outputs)
        single = len(node.outputs) == 1
        outs = [value.name if single or value in used else "_" for value in node.outputs]
        names = [f"{self.owner}.{value.name}" if value in block.prepared else value.name for value in node.inputs]
        return self._lines(node, outs, names, _shapes(node, used), returned)

    def _lines(self, node: Node, outs: list[str], names: list[str], shapes: str, returned: bool = False) -> list[str]:
        context = {
            **dict(zip(node.op.operands, names, strict=True)),
            "inputs": names,
            "outs": outs,
            "out": ", ".join(outs),
            "line_of": self._line_of,
        }
        if not self._is_line(node):
            return self._block(node.op, "statement", context).strip("\n").split("\n")
        expression = self._block(node.op, "line", context)
        start = "return" if returned else f"{context['out']} ="
        return _commented(f"{start} {expression}", shapes)

    def _line_of(self, op: Op, names: list[str]) -> str:
        """The expression of an op within another's line."""
        return self._block(op, "line", {**dict(zip(op.operands, names, strict=True)), "inputs": names})

    def _template(self, op: Op) -> Template:
        return self.templates.get_template(f"ops/{op.kind}.py.jinja")

    def _block(self, op: Op, name: str, context: Mapping[str, object]) -> str:
        template = self._template(op)
        values = template.new_context({"op": op, "module": self.owner, **context})
        return "".join(template.blocks[name](values))


def _shapes(node: Node, used: Collection[Value]) -> str:
    """The shapes of what a line makes, where they are not all that of its first operand. Scalars say nothing."""
    named = node.outputs if len(node.outputs) == 1 else [value for value in node.outputs if value in used]
    shapes = [value.type.shape_text() for value in named]
    operand = next((value.type.shape_text() for value in node.inputs if isinstance(value.type, TensorType)), "")
    if set(shapes) <= {"", "[]", operand}:
        return ""
    return f"{shapes[0]} each" if shapes.count(shapes[0]) == len(shapes) > 1 else ", ".join(filter(None, shapes))


def _commented(line: str, shapes: str) -> list[str]:
    """The shapes behind the line, or above it where both together would make the formatter break the line; there each
    has a line of its own if they are long."""
    if not shapes:
        return [line]
    if len(together := f"{line}  # {shapes}") + INDENT <= WIDTH:
        return [together]
    above = shapes if len(shapes) + 2 + INDENT <= WIDTH else shapes.replace("], [", "],\n# [")
    return [*f"# {above}".split("\n"), line]
