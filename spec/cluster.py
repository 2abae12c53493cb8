"""Machines: a file of spec/clusters/ for each kind of node. Decimal units, dense peaks, bandwidths per direction."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, PositiveFloat, Section
from dsc.spec.zoo import CLUSTERS, names


class Cluster(Section):
    name: str
    gpu: str
    architecture: Literal["ampere", "hopper", "blackwell", "cdna3", "cpu"]
    """Which calibration the time model reads: efficiencies are those of a family of GPUs, peaks are the machine's."""
    gpus_per_node: Count
    multiprocessors: Count | None = None
    """SMs or compute units of one GPU; null for a CPU, where communication takes none of them."""
    hbm_bytes: Annotated[int, Field(gt=0)]
    """Memory of one GPU, bytes."""
    hbm_bandwidth: PositiveFloat
    """Bytes per second."""
    bf16_flops: PositiveFloat
    """FLOP per second."""
    fp8_flops: PositiveFloat | None = None
    """FLOP per second; null where the GPU has no FP8 units."""
    scale_up_domain: Count
    """GPUs of a scale-up domain (NVLink or similar): those of a node, or of a rack of several nodes."""
    scale_up_bandwidth: PositiveFloat
    """NVLink or similar, bytes per second."""
    scale_up_achieved: PositiveFloat
    """Of that, what collectives achieve, bytes per second."""
    scale_up_latency: PositiveFloat
    """Latency from GPU to GPU, seconds."""
    nic_bandwidth: PositiveFloat
    """Network between scale-up domains, bytes per second of one GPU."""
    nic_achieved: PositiveFloat
    """Of that, what collectives achieve, bytes per second."""
    nic_latency: PositiveFloat
    """Latency from GPU to GPU across the network, seconds."""
    source: str
    """Where the figures are published."""
    links_source: str
    """Source of the achieved bandwidths and the latencies, or that they are assumed."""


class Machines(Section):
    """Which nodes of a kind in spec/clusters/, and how many."""

    kind: Annotated[str, Field(json_schema_extra={"enum": [*names(CLUSTERS)]})]
    """The kind of node: a file of spec/clusters."""
    nodes: Count
    """How many."""
