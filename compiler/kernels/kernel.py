"""A kernel as one record: what its template prints, where it cannot run, and what it is compiled for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, Tile, tiles
from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class Launch:
    """A launch whose tile the tuning table chooses.

    The template gets the tile under the launch's name. The function that is launched is called
    `<kernel>_<launch>_kernel`, unless several launches share it.
    """

    name: str
    """Of its rows in tiles/<kernel>.toml."""
    product: Literal["", "bf16", "fp8"] = ""
    """What the matrix units multiply, if anything."""
    by_rows: bool = False
    """Whether there are several tiles, by the number of rows at run time."""
    dims: Callable[[ModelSpec, Target], Numbers] = lambda spec, target: {}
    """Sizes by which the table distinguishes its rows."""
    shared_memory: Callable[[Numbers, ModelSpec, Target], int] = lambda tile, spec, target: 0
    """Upper bound on the bytes of a program. 0: negligible."""

    def tiles(self, kernel: str, spec: ModelSpec, target: Target) -> tuple[Tile, ...]:
        """By rising number of rows. Raises NoTile, TileTooLarge."""
        dims = self.dims(spec, target)
        return tiles(kernel, self.name, target, dims, lambda tile: self.shared_memory(tile, spec, target))


@dataclass(frozen=True)
class Probe:
    """What the ahead-of-time lane compiles a kernel for: a model of the zoo, some of its keys changed."""

    model: str
    tokens: int = 4096
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of spec keys, named by their path: {"precision.kv_cache": "fp8"}."""
    everywhere: bool = False
    """On every architecture; otherwise on sm_90 alone."""
    only: str = ""
    """A regular expression for the names of the cases that are compiled; empty: all."""

    @property
    def label(self) -> str:
        return " ".join([self.model, *(f"{key.rpartition('.')[2]}={value}" for key, value in self.changes.items())])


V3 = Probe("deepseek-v3", everywhere=True)


@dataclass(frozen=True)
class Kernel:
    """templates/kernels/<name>.py.jinja, printed as kernels/<name>.py."""

    name: str
    launches: tuple[Launch, ...] = ()
    values: Callable[[Graph, ModelSpec, Target], Mapping[str, object]] = lambda graph, spec, target: {}
    """What the template is told beside the constants of the model, the spec, the target and its tiles."""
    refusal: Callable[[ModelSpec, Target], str | None] = lambda spec, target: None
    """Why the kernel cannot run for a model on a target."""
    probes: tuple[Probe, ...] = (V3,)
    """What the ahead-of-time lane compiles, if there are cases."""

    def told(self, graph: Graph, spec: ModelSpec, target: Target | None) -> Mapping[str, object]:
        """All that the template is told. Without a target, kernels have no launches: plain PyTorch."""
        if target is None:
            return {}
        chosen: dict[str, object] = {}
        for launch in self.launches:
            found = launch.tiles(self.name, spec, target)
            chosen[launch.name] = found if launch.by_rows else found[0]
        return {**chosen, **self.values(graph, spec, target)}
