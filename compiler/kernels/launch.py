"""What templates/kernels/launch.py.jinja is told: nothing."""

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target | None) -> dict[str, object]:
    return {}
