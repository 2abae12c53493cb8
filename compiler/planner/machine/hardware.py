"""The machines of a plan: a cluster's published figures, how many GPUs, and the calibration of their family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsc.compiler.planner.machine.calibration import CALIBRATIONS, Calibration, Figure, KernelClass
from dsc.spec.cluster import Cluster, Machines
from dsc.spec.errors import DscError, Finding
from dsc.spec.loader import load_machine
from dsc.spec.zoo import CLUSTERS, names, path_of

FP8_CLASSES: tuple[KernelClass, ...] = ("fp8_gemm", "fp8_grouped")


class UnknownHardware(DscError):
    """A machine of which nothing is known, or that lacks what the plan needs. Nothing stands in for it."""


@dataclass(frozen=True)
class Hardware:
    cluster: Cluster
    gpus: int
    """Of them all; the last node may lack some."""
    calibration: Calibration

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.cluster.gpus_per_node)

    @property
    def is_gpu(self) -> bool:
        return self.cluster.architecture != "cpu"

    @property
    def device(self) -> str:
        """What one of them is called."""
        return "GPU" if self.is_gpu else "process"

    def devices(self, count: int) -> str:
        """2,048 GPUs, 1 GPU, 4 processes."""
        plural = "" if count == 1 else "s" if self.is_gpu else "es"
        return f"{count:,} {self.device}{plural}"

    def of_nodes(self, nodes: int) -> Hardware:
        """So many whole nodes of the same kind."""
        return replace(self, gpus=nodes * self.cluster.gpus_per_node)

    def peak(self, kernel_class: KernelClass) -> float:
        """Dense FLOP per second."""
        if kernel_class in FP8_CLASSES:
            if self.cluster.fp8_flops is None:
                message = f"{self.cluster.gpu} has no FP8 units, which precision.linear.kind fp8_block needs"
                raise UnknownHardware([Finding("DSC065", message, ("cluster", "kind"))])
            return self.cluster.fp8_flops
        rate = self.calibration.fp32_rate.value if kernel_class == "fp32_gemm" else 1.0
        return self.cluster.bf16_flops * rate

    def rates(self, efficiencies: dict[KernelClass, Figure], kernel_class: KernelClass) -> tuple[float, float]:
        """FLOP and bytes a second that a kernel reaches; memory as well as memory-bound kernels reach it."""
        memory: KernelClass = "cast" if kernel_class == "cast" else "memory"
        moving = self.cluster.hbm_bandwidth * efficiencies[memory].value
        if kernel_class in ("cast", "memory"):
            return 0.0, moving
        return self.peak(kernel_class) * efficiencies[kernel_class].value, moving

    def kernel_seconds(
        self, efficiencies: dict[KernelClass, Figure], kernel_class: KernelClass, flops: float, bytes: float
    ) -> float:
        """One kernel on a GPU that does nothing else."""
        computing, moving = self.rates(efficiencies, kernel_class)
        return max(flops / computing if flops else 0.0, bytes / moving, self.calibration.kernel_floor.value)


def hardware(machines: Machines) -> Hardware:
    """Raises UnknownHardware for a kind that spec/clusters/ has no file of."""
    cluster = machines.machine or _shipped(machines.kind)
    gpus = machines.gpus or (machines.nodes or 1) * cluster.gpus_per_node
    return Hardware(cluster, gpus, calibration_of(cluster))


def _shipped(kind: str) -> Cluster:
    path = path_of(kind, CLUSTERS)
    if path is None:
        known = ", ".join(names(CLUSTERS))
        message = f"no cluster is named {kind!r}"
        raise UnknownHardware([Finding("DSC065", message, ("cluster", "kind"), f"one of {known}")])
    return load_machine(path)


def calibration_of(cluster: Cluster) -> Calibration:
    """Raises UnknownHardware for a family without a row in the table."""
    if cluster.architecture not in CALIBRATIONS:
        message = f"nothing is known of how fast {cluster.gpu} ({cluster.architecture}) really is"
        help = f"calibrated are {', '.join(sorted(CALIBRATIONS))}"
        raise UnknownHardware([Finding("DSC065", message, ("cluster", "kind"), help)])
    return CALIBRATIONS[cluster.architecture]
