"""Output head and cross-entropy in one."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec

TOKEN_CHUNK = 8192
VOCAB_CHUNK = 16384
"""dlogits are made for this many tokens and columns at a time: 256 MiB in bfloat16. More columns save traffic (dhidden
is added to once for each chunk), more tokens too; at 4096 x 7168 the eight sums cost 1.6% of backward's floor."""


def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """A step of both operands in bfloat16 for each one in flight.

    The matrix units of Hopper and Blackwell read shared memory, so the step being multiplied takes a buffer as well;
    and barriers stand between.
    """
    step = 2 * (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"]
    if target.arch in ("sm_90", "sm_100"):
        return tile["num_stages"] * step + 64
    return (tile["num_stages"] - 1) * step


LINEAR_CROSS_ENTROPY = Kernel(
    "linear_cross_entropy",
    launches=tuple(Launch(name, "bf16", shared_memory=shared_memory) for name in ("forward", "backward")),
    values=lambda graph, spec, target: {
        "token_chunk": TOKEN_CHUNK,
        "vocab_chunk": VOCAB_CHUNK,
        "buffer_mib": 2 * TOKEN_CHUNK * VOCAB_CHUNK >> 20,
        "z_loss": spec.z_loss,
    },
    probes=(V3, Probe("llama-3.1-8b")),
)
