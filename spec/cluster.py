"""The machines: a file of spec/clusters/ for each kind of node. Decimal units, dense peaks, bandwidths one way."""

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
    """SMs or compute units of one GPU; null for a CPU, where communication takes no share of them."""
    hbm_bytes: Annotated[int, Field(gt=0)]
    """Memory of one GPU, bytes."""
    hbm_bandwidth: PositiveFloat
    """Bytes per second."""
    bf16_flops: PositiveFloat
    """FLOP per second."""
    fp8_flops: PositiveFloat | None = None
    """FLOP per second; null where the GPU has no FP8 units."""
    scale_up_domain: Count
    """GPUs that NVLink or its like joins: a node's, or those of a rack of several nodes."""
    scale_up_bandwidth: PositiveFloat
    """NVLink or its like, bytes per second."""
    scale_up_achieved: PositiveFloat
    """Of that, what collectives reach, bytes per second."""
    scale_up_latency: PositiveFloat
    """Seconds from GPU to GPU."""
    nic_bandwidth: PositiveFloat
    """Network between scale-up domains, bytes per second of one GPU."""
    nic_achieved: PositiveFloat
    """Of that, what collectives reach, bytes per second."""
    nic_latency: PositiveFloat
    """Seconds from GPU to GPU across the network."""
    source: str
    """Where the figures are published."""
    links_source: str
    """Where the achieved bandwidths and the latencies are from, or that they are assumed."""


class Machines(Section):
    """Which nodes of a kind in spec/clusters/, and how many."""

    kind: Annotated[str, Field(json_schema_extra={"enum": [*names(CLUSTERS)]})]
    """The kind of node: a file of spec/clusters."""
    nodes: Count
    """How many."""
