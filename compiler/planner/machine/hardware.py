"""The machines of a plan: a cluster's published figures, how many GPUs, and the calibration of their family."""

from __future__ import annotations

from dataclasses import dataclass

from dsc.compiler.planner.machine.calibration import CALIBRATIONS, Calibration, Figure, KernelClass
from dsc.spec.cluster import Cluster, Machines
from dsc.spec.errors import DscError, Finding
from dsc.spec.loader import load_section
from dsc.spec.zoo import CLUSTERS, names, path_of

FP8_CLASSES: tuple[KernelClass, ...] = ("fp8_gemm", "fp8_grouped")


class UnknownHardware(DscError):
    """A machine of which nothing is known, or that lacks what the plan needs. Nothing stands in for it."""


@dataclass(frozen=True)
class Hardware:
    cluster: Cluster
    nodes: int
    calibration: Calibration

    @property
    def gpus(self) -> int:
        return self.nodes * self.cluster.gpus_per_node

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
    path = path_of(machines.kind, CLUSTERS)
    if path is None:
        known = ", ".join(names(CLUSTERS))
        message = f"no cluster is named {machines.kind!r}"
        raise UnknownHardware([Finding("DSC065", message, ("cluster", "kind"), f"one of {known}")])
    cluster = load_section(Cluster, path.read_bytes(), str(path), lambda _: [])
    return Hardware(cluster, machines.nodes, calibration_of(cluster))


def calibration_of(cluster: Cluster) -> Calibration:
    """Raises UnknownHardware for a family without a row in the table."""
    if cluster.architecture not in CALIBRATIONS:
        message = f"nothing is known of how fast {cluster.gpu} ({cluster.architecture}) really is"
        help = f"calibrated are {', '.join(sorted(CALIBRATIONS))}"
        raise UnknownHardware([Finding("DSC065", message, ("cluster", "kind"), help)])
    return CALIBRATIONS[cluster.architecture]
