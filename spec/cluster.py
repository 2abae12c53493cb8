"""Machines: a file of spec/clusters/ for each kind of node. Decimal units, dense peaks, bandwidths per direction."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dsc.spec.base import Count, PositiveFloat, Section
from dsc.spec.zoo import CLUSTERS, names


class Cluster(Section):
    name: str
    """What plans and tables call it."""
    gpu: str
    """What is in it, as its maker calls it."""
    architecture: Literal["ada", "ampere", "hopper", "blackwell", "cdna3", "cdna4", "cpu"]
    """Which calibration the time model reads: efficiencies are those of a family of GPUs, peaks are the machine's."""
    gpus_per_node: Count
    """GPUs of one machine; on a cluster of CPUs, processes."""
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


def is_file(kind: str) -> bool:
    """Whether a kind of node is a file's path, and not a name."""
    return "/" in kind or kind.endswith((".yaml", ".yml"))


def _lower_case(kind: object) -> object:
    return kind.lower() if isinstance(kind, str) and not is_file(kind) else kind


class Machines(Section):
    """Which nodes, and how many."""

    kind: Annotated[
        str,
        BeforeValidator(_lower_case),
        Field(json_schema_extra={"anyOf": [{"enum": [*names(CLUSTERS)]}, {"pattern": r"/|\.ya?ml$"}]}),
    ]
    """The kind of node: a name of spec/clusters in any case, or a file like those, as seen from the spec's folder."""
    nodes: Count | None = None
    """How many; null: as many as `gpus` fill, or one."""
    gpus: Count | None = None
    """GPUs, where they do not fill the last node; null for all of the nodes'."""
    machine: Cluster | None = None
    """What a file of one's own says of a node; null for a kind of spec/clusters."""


def _of_one_node(value: object) -> object:
    """`cluster: h100` for `cluster: {kind: h100}`."""
    return {"kind": value} if isinstance(value, str) else value


Machinery = Annotated[Machines, BeforeValidator(_of_one_node, json_schema_input_type=Machines | str)]
