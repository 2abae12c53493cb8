"""What templates/kernels/grouped_gemm.py.jinja is told: tiles by the number of rows that an expert has on average."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, Tile, tiles
from dsc.spec.model import ModelSpec

NAME = "grouped_gemm"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {"gate_up": chosen(NAME, "gate_up", target, weights=2), "product": chosen(NAME, "product", target)}


def chosen(kernel: str, launch: str, target: Target, weights: int = 1) -> tuple[Tile, ...]:
    return tiles(kernel, launch, target, {}, lambda tile: shared_memory(tile, target, weights))


def shared_memory(tile: Numbers, target: Target, weights: int = 1) -> int:
    """Bytes of the operands in flight, two for an element, or after them of the sums turned round for their store.

    `weights` are the tiles of weights that go with one of rows. Hopper and Blackwell multiply out of shared memory
    while the next copies arrive, which takes one more buffer, and barriers.
    """
    asynchronous = target.arch in ("sm_90", "sm_100")
    buffers = tile["num_stages"] - (not asynchronous)
    operands = 2 * tile["BLOCK_K"] * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
    return max(buffers * operands, 2 * tile["BLOCK_M"] * tile["BLOCK_N"]) + 512 * asynchronous
