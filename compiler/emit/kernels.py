"""The files of kernels/: each one template, filled with the constants of the model and the tiles of the target."""

from __future__ import annotations

from importlib import import_module

from jinja2 import Environment

from dsc.compiler.emit.header import header
from dsc.compiler.emit.pyfile import constants, used_names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def kernel_file(templates: Environment, name: str, graph: Graph, spec: ModelSpec, target: Target) -> str:
    """kernels/<name>.py. The constants that stand at its top are those that its body uses."""
    template = f"kernels/{name}.py"
    values = {
        "header": header(spec, template),
        "spec": spec,
        "graph": graph,
        "target": target,
        **import_module(f"dsc.compiler.kernels.{name}").values(graph, spec, target),
    }
    printed = templates.get_template(f"{template}.jinja")
    body = printed.render(**values, constants="")
    return printed.render(**values, constants=constants(graph.constants, used_names(body)))
