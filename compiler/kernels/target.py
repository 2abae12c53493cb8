"""The processors that kernels are written for."""

from __future__ import annotations

from dataclasses import dataclass

from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class Target:
    """A GPU architecture, as far as it decides how a kernel is cut."""

    arch: str
    """CUDA's compute capability (sm_90) or AMD's name (gfx942)."""
    shared_memory: int
    """Most bytes of shared memory that one program may take (CUDA C++ Programming Guide, table of compute
    capabilities, less the 1 KiB that the system keeps; LDS of CDNA's instruction set guides)."""
    num_sms: int
    """Processors that programs are spread over."""
    fp8: bool
    """Whether its matrix units multiply float8_e4m3fn."""


TARGETS = {
    target.arch: target
    for target in (
        Target("sm_80", 166_912, 108, fp8=False),
        Target("sm_90", 232_448, 132, fp8=True),
        Target("sm_100", 232_448, 148, fp8=True),
        Target("gfx942", 65_536, 304, fp8=False),  # its float8 is another format (e4m3fnuz)
        Target("gfx950", 163_840, 256, fp8=True),
    )
}

ARCHITECTURES = {
    "a100": "sm_80",
    "h100": "sm_90",
    "h200": "sm_90",
    "h800": "sm_90",
    "b200": "sm_100",
    "gb200": "sm_100",
    "gb300": "sm_100",
    "mi300x": "gfx942",
    "mi350x": "gfx950",
}


FAMILIES = {"hopper": "sm_90", "cdna3": "gfx942", "cdna4": "gfx950"}
"""Families all of whose GPUs are one architecture: for machines of one's own."""


def target_of(spec: ModelSpec) -> Target | None:
    """The target of the spec's cluster; none without one, or where there are no kernels for it."""
    if spec.cluster is None:
        return None
    kind, machine = spec.cluster.kind, spec.cluster.machine
    family = FAMILIES.get(machine.architecture, "") if machine else ""
    return TARGETS.get(ARCHITECTURES.get(kind, family))
