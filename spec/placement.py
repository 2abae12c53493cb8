"""Pins of the plan: choices that the planner must keep. What is left out, it chooses."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from dsc.spec.base import Count, Section

Recompute = Literal["experts", "full", "mla_up_proj", "norms", "swiglu"]
RECOMPUTE: tuple[str, ...] = get_args(Recompute)
Dispatch = Literal["all_to_all", "deepep"]


class Placement(Section):
    """How the GPUs share the model; the sizes multiply up to the cluster: pp * dp * cp * tp GPUs."""

    pp: Count | None = None
    """Pipeline parallelism: ranks that each hold some of the layers."""
    vpp: Count | None = None
    """Stages of each pipeline rank."""
    schedule: Literal["1f1b", "interleaved", "zbv", "dualpipe", "dualpipe-v"] | None = None
    """In which order a pipeline's ranks work through micro-batches."""
    tp: Count | None = None
    """Tensor parallelism, with sequence parallelism between the products."""
    cp: Count | None = None
    """Context parallelism: ranks that each hold a part of every sequence."""
    ep: Count | None = None
    """Expert parallelism: ranks that each hold some of the experts."""
    etp: Count | None = None
    """Expert tensor parallelism: ranks that each hold a part of every expert."""
    dp: Count | None = None
    """Data parallelism."""
    zero: Annotated[int, Field(ge=0, le=3)] | None = None
    """What data parallelism shards: 0 nothing, 1 the optimizer, 2 gradients too, 3 parameters too (FSDP)."""
    micro_batch: Count | None = None
    """Sequences."""
    recompute: list[Recompute] | None = None
    """What backward recomputes instead of storing."""
    activations: Literal["bf16", "fp8"] | None = None
    """Type in which dispatched tokens and SwiGLU's inputs are stored for backward (DeepSeek-V3, section 3.3.3)."""
    dispatch: Dispatch | None = None
    """What takes tokens to other ranks' experts: PyTorch's all-to-all, or DeepEP, which must be installed then."""
