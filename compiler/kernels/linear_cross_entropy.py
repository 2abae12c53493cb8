"""What templates/kernels/linear_cross_entropy.py.jinja is told: the tiles, and the size of the buffer of backward."""

from __future__ import annotations

from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.model import ModelSpec

NAME = "linear_cross_entropy"

TOKEN_CHUNK = 8192
VOCAB_CHUNK = 16384
"""dlogits are made for this many tokens and columns at a time: 256 MiB in bfloat16. More columns save traffic (dhidden
is added up once for each chunk), more tokens too; at 4096 x 7168 the eight sums cost 1.6% of backward's floor."""


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    (forward,) = tiles(NAME, "forward", target, {}, partial(shared_memory, target))
    (backward,) = tiles(NAME, "backward", target, {}, partial(shared_memory, target))
    return {
        "forward": forward,
        "backward": backward,
        "token_chunk": TOKEN_CHUNK,
        "vocab_chunk": VOCAB_CHUNK,
        "buffer_mib": 2 * TOKEN_CHUNK * VOCAB_CHUNK >> 20,
        "z_loss": spec.z_loss,
    }


def shared_memory(target: Target, tile: Numbers) -> int:
    """Bytes: a step of both operands in bfloat16 for each one that is under way.

    The matrix units of Hopper and Blackwell read shared memory, so the step that they are at has a place as well; and
    barriers stand between.
    """
    step = 2 * (tile["block_t"] + tile["block_v"]) * tile["block_d"]
    if target.arch in ("sm_90", "sm_100"):
        return tile["num_stages"] * step + 64
    return (tile["num_stages"] - 1) * step
