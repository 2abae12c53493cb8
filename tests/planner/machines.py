"""Models and machines that the planner's tests share, each built once."""

from dataclasses import replace
from functools import cache

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import planned, run
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.verify import verify
from dsc.compiler.passes.fuse.attention import fuse_latent_attention
from dsc.compiler.passes.fuse.elementwise import fuse_elementwise
from dsc.compiler.passes.fuse.loss import fuse_linear_cross_entropy
from dsc.compiler.passes.fuse.norms import fuse_norms
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware, hardware
from dsc.compiler.planner.parts.stages import Stages, split
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.overlap import OtherEngines
from dsc.compiler.planner.time.step import CostModel
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

# DeepSeek-V3's recipe (report, sections 3.2.3 and 3.3.3) and plan (section 3.1).
V3_RECOMPUTE = ("mla_up_proj", "norms", "swiglu")
V3_PLAN = Layout(16, 1, "dualpipe", 1, 1, 64, 1, 128, 1, 1, V3_RECOMPUTE, "fp8")
V3_BATCH = 15360

TRACED = (fuse_norms, fuse_latent_attention, fuse_elementwise, fuse_linear_cross_entropy)
"""The kernels of DeepSeek's trace, which the calibration was read off: sorting, gathering, multiplying and summing of
experts are steps of their own there. Other engines' published runs are told with this graph; no plan is."""


@cache
def model(name: str, sequence_length: int | None = None) -> tuple[ModelSpec, Graph]:
    """With the graph of the trace."""
    spec = load(name)
    if sequence_length is not None:
        workload = spec.workload.model_copy(update={"sequence_length": sequence_length})
        spec = spec.model_copy(update={"workload": workload})
    return spec, run(verify(build_graph(spec)), TRACED)


def others(spec: ModelSpec, interleaved_hides: bool = False) -> OtherEngines:
    """Engines that run in FP8 what the spec says, beside whatever runs again."""
    return OtherEngines(spec.precision.fp8_products(), interleaved_hides, recompute_hides=True)


def theirs(name: str, hardware: Hardware, sequence_length: int | None = None, hides: bool = False) -> CostModel:
    """What a model takes in other engines."""
    spec, graph = model(name, sequence_length)
    return CostModel(spec, graph, hardware, others=others(spec, hides))


@cache
def emitted(name: str, kind: str, nodes: int = 1) -> Problem:
    """To plan for, as the package is emitted."""
    machines = Machines(kind=kind, nodes=nodes)
    spec = load(name).model_copy(update={"cluster": machines, "placement": None})
    return Problem(spec, *planned(spec), hardware(machines))


@cache
def machine(kind: str, nodes: int) -> Hardware:
    return hardware(Machines(kind=kind, nodes=nodes))


def balanced(machine: Hardware) -> Hardware:
    """The same under routing that a benchmark balances by force."""
    calibration = machine.calibration
    return replace(machine, calibration=replace(calibration, imbalance=replace(calibration.imbalance, value=1.0)))


@cache
def costs(name: str, kind: str, nodes: int, sequence_length: int | None = None) -> CostModel:
    return theirs(name, machine(kind, nodes), sequence_length)


def staged(model: CostModel, layout: Layout) -> Stages:
    return split(model.parts, model.weights(layout), layout.chunks)
