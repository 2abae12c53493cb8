"""infer/ of a package, but for what is printed from the graph: pool, scheduler, sampling, text."""

from __future__ import annotations

from jinja2 import Environment

from dsc.compiler.emit.header import header
from dsc.spec.model import ModelSpec

FILES = ("cache", "sampling", "scheduler", "text")


def serving_files(templates: Environment, spec: ModelSpec, page_size: int) -> dict[str, str]:
    values = {"spec": spec, "page_size": page_size}
    names = [f"infer/{name}.py" for name in FILES]
    return {name: templates.get_template(f"{name}.jinja").render(header=header(spec, name), **values) for name in names}
