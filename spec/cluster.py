"""The machines: a file of spec/clusters/ for each kind of node. Decimal units, dense peaks, bandwidths one way."""

from typing import Annotated

from pydantic import Field

from dsc.spec.base import Count, PositiveFloat, Section


class Cluster(Section):
    name: str
    gpu: str
    gpus_per_node: Count
    hbm_bytes: Annotated[int, Field(gt=0)]
    """Memory of one GPU, bytes."""
    hbm_bandwidth: PositiveFloat
    """Bytes per second."""
    bf16_flops: PositiveFloat
    """FLOP per second."""
    fp8_flops: PositiveFloat | None = None
    """FLOP per second; null where the GPU has no FP8 units."""
    scale_up_bandwidth: PositiveFloat
    """NVLink or its like, bytes per second."""
    nic_bandwidth: PositiveFloat
    """Network between nodes, bytes per second."""
    source: str
    """Where the figures are published."""


class Machines(Section):
    """Which nodes of a kind in spec/clusters/, and how many."""

    kind: str
    nodes: Count
