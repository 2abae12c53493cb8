"""Models and machines that the planner's tests share, each built once."""

from dataclasses import replace
from functools import cache

from dsc.compiler.driver import timed
from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware, hardware
from dsc.compiler.planner.parts.stages import Stages, split
from dsc.compiler.planner.time.step import CostModel
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

# DeepSeek-V3's recipe (report, sections 3.2.3 and 3.3.3) and plan (section 3.1).
V3_RECOMPUTE = ("mla_up_proj", "norms", "swiglu")
V3_PLAN = Layout(16, 1, "dualpipe", 1, 1, 64, 1, 128, 1, 1, V3_RECOMPUTE, "fp8")
V3_BATCH = 15360


@cache
def model(name: str, sequence_length: int | None = None) -> tuple[ModelSpec, Graph]:
    """With the graph that is timed."""
    spec = load(name)
    if sequence_length is not None:
        workload = spec.workload.model_copy(update={"sequence_length": sequence_length})
        spec = spec.model_copy(update={"workload": workload})
    return spec, timed(spec)


@cache
def machine(kind: str, nodes: int) -> Hardware:
    return hardware(Machines(kind=kind, nodes=nodes))


def balanced(machine: Hardware) -> Hardware:
    """The same under routing that a benchmark balances by force."""
    calibration = machine.calibration
    return replace(machine, calibration=replace(calibration, imbalance=replace(calibration.imbalance, value=1.0)))


@cache
def costs(name: str, kind: str, nodes: int, sequence_length: int | None = None) -> CostModel:
    return CostModel(*model(name, sequence_length), machine(kind, nodes))


def staged(model: CostModel, layout: Layout) -> Stages:
    return split(model.parts, model.weights(layout), layout.chunks)
