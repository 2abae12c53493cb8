"""The files of kernels/: each one template, filled with the constants of the model and the tiles of the target."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jinja2 import Environment

from dsc.compiler.emit.header import header
from dsc.compiler.emit.model import kernel_functions
from dsc.compiler.emit.pyfile import constants, used_names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.registry import kernel_named
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec

SIBLING = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def kernel_files(
    templates: Environment, graphs: Iterable[Graph], spec: ModelSpec, target: Target | None
) -> dict[str, str]:
    """Every kernel that some graph calls, and those that they import, by their path in the package."""
    files: dict[str, str] = {}
    for graph in graphs:
        wanted = [module for module, _ in kernel_functions(graph)]
        while wanted:
            path = f"kernels/{(name := wanted.pop())}.py"
            if path not in files:
                files[path] = kernel_file(templates, name, graph, spec, target)
                wanted += SIBLING.findall(files[path])
    return files


def kernel_file(templates: Environment, name: str, graph: Graph, spec: ModelSpec, target: Target | None) -> str:
    """kernels/<name>.py. The constants that stand at its top are those that its body uses."""
    template = f"kernels/{name}.py"
    values = {
        "header": header(spec, template),
        "spec": spec,
        "graph": graph,
        "target": target,
        **kernel_named(name).told(graph, spec, target),
    }
    printed = templates.get_template(f"{template}.jinja")
    body = printed.render(**values, constants="")
    return printed.render(**values, constants=constants(graph.constants, used_names(body)))
