"""What starts a package on the machines of its plan: plan.yaml itself, a script for each machine, one for Slurm."""

from __future__ import annotations

from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.shard import MOE, Sharing

PLAN = "plan.yaml"


def plan_file(text: str) -> File:
    """As it was planned; no template has a say in it."""
    return File(
        PLAN, PLAN, "The plan that `dsc compile` keeps to: memory, time, and what spoke against others.", (), text
    )


def launch_files(printer: FilePrinter, sharing: Sharing, graph: Graph) -> list[File]:
    """run.sh, and run.slurm where there are several machines; their numbers are the plan's."""
    full = min(sharing.machine_ranks, sharing.world)
    values = {
        "sharing": sharing,
        "full": full,
        "last": sharing.world - full * (sharing.machines - 1),
        "gpu": sharing.on_gpus,
        "experts": MOE in graph.blocks,
    }
    paths = ["run.sh", *(["run.slurm"] if sharing.machines > 1 else [])]
    return [printer.file(path, f"package/{path}", **values) for path in paths]
