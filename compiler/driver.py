"""The pipeline, as a line of calls: spec -> graph -> passes -> files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

import dsc.compiler.ops  # noqa: F401  registers the op kinds
from dsc.compiler.blocks.model import build_graph
from dsc.compiler.emit.command import regenerate
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.verify import verify
from dsc.compiler.kernels.lowering import lowered
from dsc.compiler.kernels.target import Target, target_of
from dsc.compiler.passes.cache import as_functions, with_cache
from dsc.compiler.passes.capture import uncaptured
from dsc.compiler.passes.codes import multiply_by_codes
from dsc.compiler.passes.context import predict_at_all_positions
from dsc.compiler.passes.deepep import share_experts_by_deepep
from dsc.compiler.passes.distribute import TrainingStep, training_step
from dsc.compiler.passes.divide import deal_tokens, divide_layers
from dsc.compiler.passes.fuse.attention import fuse_latent_attention, fuse_masked_attention
from dsc.compiler.passes.fuse.choose import called, choose_kernels, fused
from dsc.compiler.passes.handing import as_functions_of_modules
from dsc.compiler.passes.inference import for_inference, last_position
from dsc.compiler.passes.let_go import let_go
from dsc.compiler.passes.mtp_weight import weight_of_step
from dsc.compiler.passes.pack import pack
from dsc.compiler.passes.packed import documents_apart, packed
from dsc.compiler.passes.paged import with_pages
from dsc.compiler.passes.policy import Policies, policies, record_experts, shares_weights
from dsc.compiler.passes.prepare import as_functions_of_weights, prepare
from dsc.compiler.passes.recompute import make_again
from dsc.compiler.passes.serve import for_serving
from dsc.compiler.passes.shard import sharing_experts
from dsc.compiler.passes.share import may_idle, share_served_experts
from dsc.compiler.passes.state import wide_state
from dsc.compiler.passes.tensor import sharing_tensors
from dsc.compiler.passes.turns import in_turns, one_by_one, pairs, put_off_again
from dsc.compiler.planner.layout.pins import impossible_pins, refused_pins
from dsc.spec.checks import cautions
from dsc.spec.errors import DscError
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

if TYPE_CHECKING:
    from jinja2 import BaseLoader

    from dsc.compiler.planner.report.locked import LockedPlan
    from dsc.compiler.planner.report.package import PackagePlan
    from dsc.compiler.planner.search.problem import Problem
    from dsc.compiler.planner.serving.served import Graphs

Pass = Callable[[Graph], Graph]

INFERENCE_PASSES: tuple[Pass, ...] = (for_inference, last_position, with_cache)


@dataclass(frozen=True)
class Program:
    """A spec, the GPU that it names, its graph for training, and the one for generation that follows from it."""

    spec: ModelSpec
    target: Target | None
    plain: Graph
    """For training, before any kernel: it says in which order classes declare their parameters."""
    training: Graph
    step: TrainingStep
    inference: Graph
    serving: Graph
    """The one that the package's engine runs: packed tokens, pages of a cache, prepared weights."""
    plan: str = ""
    """plan.yaml; empty where there is no plan."""
    policies: Policies | None = None
    """What reinforcement learning trains; None where the spec asks for none."""
    rows: Graph | None = None
    """What supervised training on answers trains, several of them in a row; None where there is no policy."""
    notes: tuple[str, ...] = ()
    """Where the compiler deviates from the spec."""


def run(graph: Graph, passes: tuple[Pass, ...]) -> Graph:
    """Passes in order, the graph verified after each."""
    for rewrite in passes:
        graph = verify(rewrite(graph), graph)
    return graph


def build(spec: ModelSpec, training_passes: tuple[Pass, ...] = (), locked: LockedPlan | None = None) -> Program:
    """Both graphs; each gets the kernels of the target last, so that other passes see plain ops.

    `locked` is a plan that is kept to; without one, a spec that places its model is planned here.
    """
    if locked is not None:
        spec = locked.spec
    target = target_of(spec)
    kernels = choose_kernels(spec, target)
    plain = run(verify(build_graph(spec)), training_passes)
    spec, step, plan, alone = _placed(spec, plain, locked)
    (decoding,), expanded = fused([run(plain, INFERENCE_PASSES)], kernels.inference, spec, target)
    (served,), gathered = fused([run(plain, _serving_passes(spec))], kernels.serving, spec, target)
    graphs = [plain, verify(step.graph), decoding, served, *([] if spec.rl is None else [verify(packed(plain))])]
    (training, stepped, inference, served, *learned), untiled = fused(graphs, kernels.passes, spec, target)
    rows = verify(as_functions_of_modules(learned[0], training)) if learned else None
    learning = _policies(spec, training, stepped, plain, step)
    inference = verify(as_functions(inference, training))
    training, stepped = (verify(let_go(make_again(graph, step.recompute)), graph) for graph in (training, stepped))
    step = replace(step, graph=stepped)
    apart = one_by_one(step.sharing, step.stages)
    if step.sharing is not None and pairs(step.sharing) and not apart:
        stepped = verify(put_off_again(stepped), stepped)
        step = replace(step, graph=stepped, turns=verify(in_turns(stepped, step.stages, step.sharing.zero)))
    serving = run(served, (multiply_by_codes, prepare, *kernels.prepared, as_functions_of_weights))
    choices = *kernels.notes, *expanded, *gathered, *untiled, *_plain_attention(step)
    written = without_graphs(target, serving)
    layout = *alone, *apart, *_answers(spec, step)
    notes = tuple(dict.fromkeys((*cautions(spec), *choices, *written, *layout, *wide_state(spec))))
    return Program(spec, target, plain, training, step, inference, serving, plan, learning, rows, notes)


def _placed(
    spec: ModelSpec, plain: Graph, locked: LockedPlan | None
) -> tuple[ModelSpec, TrainingStep, str, tuple[str, ...]]:
    """The spec with its plan's choices, a step as its ranks share it, plan.yaml; and why it is one device's, if asked
    for more."""
    planned = plan_of_package(spec, locked)
    if planned is None or isinstance(planned, str):
        alone = () if planned is None else (f"train: on one device, for {planned}",)
        return spec, training_step(read_in_rows(spec, plain), None), "", alone
    return planned.spec, training_step(read_in_rows(spec, plain), planned.sharing), planned.text, ()


def _serving_passes(spec: ModelSpec) -> tuple[Pass, ...]:
    """From the plain graph to the engine's, over packed tokens."""
    before, between, after = _on_ranks(spec)
    recording = (record_experts,) if _replays(spec) else ()
    return *before, for_serving, *between, *recording, partial(pack, positions=spec.max_position_embeddings), *after


def _policies(spec: ModelSpec, training: Graph, stepped: Graph, plain: Graph, step: TrainingStep) -> Policies | None:
    if spec.rl is None:
        return None
    shared = shares_weights(step.sharing, spec.training)
    return policies(training, stepped, plain, step, shared, _replays(spec))


def _replays(spec: ModelSpec) -> bool:
    return spec.rl is not None and spec.rl.router_replay


def read_in_rows(spec: ModelSpec, plain: Graph) -> Graph:
    """The plain graph as pre-training runs it on the rows that the spec asks for, with what a step is told of them."""
    rows = verify(documents_apart(plain)) if spec.training.documents == "apart" else plain
    return verify(weight_of_step(rows)) if spec.mtp is not None and spec.mtp.later is not None else rows


def _answers(spec: ModelSpec, step: TrainingStep) -> Iterator[str]:
    """Where sft and grpo do less than the plan has of pre-training."""
    if spec.rl is not None and step.recompute:
        yield "sft and grpo: backward makes nothing again, whatever is recomputed in pre-training"
    if spec.rl is not None and step.sharing is not None and not shares_weights(step.sharing, spec.training):
        yield "sft and grpo: one process, for they have no code where ranks share so, or keep documents apart"


def _on_ranks(spec: ModelSpec) -> tuple[tuple[Pass, ...], tuple[Pass, ...], tuple[Pass, ...]]:
    """Passes of a graph that several ranks serve: before all others, around those of attention over pages, and last."""
    if spec.serving is None or spec.serving.ranks == 1:
        return (), (with_pages,), ()
    ep, tp = spec.serving.ep, spec.serving.tp
    dividing = (partial(divide_layers, ranks=tp),) if tp > 1 else ()
    if ep == 1:
        return (), (*dividing, with_pages), ()
    dealing = (deal_tokens,) if tp > 1 else ()
    sharing = partial(share_served_experts, ranks=ep, redundant=spec.serving.redundant_experts)
    return (sharing,), (*dividing, with_pages, may_idle), dealing


def plan_of_package(spec: ModelSpec, locked: LockedPlan | None) -> PackagePlan | str | None:
    """How the ranks of the spec's cluster share a step; None where the spec does not place the model;
    a string says why they do not. Raises DscError where nothing keeps to the spec's pins."""
    if spec.cluster is None or (spec.placement is None and locked is None):
        return None
    from dsc.compiler.planner.report.package import package_plan  # takes long to import

    if locked is not None:
        spec = locked.dispatching(spec)
    emitted = lowered(spec).spec
    if wrong := impossible_pins(emitted):
        raise DscError(wrong)
    if reason := refused_pins(emitted):
        return reason
    try:
        return package_plan(problem_of(spec), locked)
    except DscError as error:  # legal, but not with what is emitted for what the pins leave open
        return f"there is no code yet for any layout that keeps to the pins: {error.findings[0].message}"


def without_graphs(target: Target | None, serving: Graph) -> Iterator[str]:
    """Why the engine captures nothing on a GPU that could."""
    if target is not None and (reason := uncaptured(serving)):
        yield f"infer: steps that write texts run without CUDA graphs: {reason}"


def problem_of(spec: ModelSpec) -> Problem:
    """The model and the machines that a step is planned for, the same wherever it is planned."""
    from dsc.compiler.planner.machine.hardware import hardware  # these take long to import
    from dsc.compiler.planner.search.problem import Problem

    assert spec.cluster is not None
    alone, shared = planned(spec)
    kept, cluster = lowered(spec).spec, hardware(spec.cluster)
    context, tensor, both = in_context(spec), in_tensor(spec), in_both(spec)
    return Problem(kept, alone, shared, cluster, context, asked=spec, in_tensor=tensor, in_both=both)


def planned(spec: ModelSpec) -> tuple[Graph, Graph]:
    """What the planner reads: the training graph as it is emitted, and the same where ranks share the experts out."""
    return _planned(spec, _in_rows(spec))


def in_context(spec: ModelSpec) -> tuple[Graph, Graph]:
    """The same two graphs where ranks share sequences."""
    return _planned(spec, run(_in_rows(spec), (predict_at_all_positions,)), CAUSAL)


def in_tensor(spec: ModelSpec) -> tuple[Graph, Graph]:
    """The same two graphs where ranks share heads, widths and the vocabulary."""
    return _planned(spec, run(_in_rows(spec), (predict_at_all_positions, sharing_tensors)))


def in_both(spec: ModelSpec) -> tuple[Graph, Graph]:
    """The same two graphs where ranks share heads, widths and the vocabulary, and others each sequence."""
    return _planned(spec, run(_in_rows(spec), (predict_at_all_positions, sharing_tensors)), CAUSAL)


def _in_rows(spec: ModelSpec) -> Graph:
    return read_in_rows(spec, verify(build_graph(spec)))


def _planned(spec: ModelSpec, plain: Graph, without: Collection[Pass] = ()) -> tuple[Graph, Graph]:
    target = target_of(spec)
    by_deepep = spec.placement is not None and spec.placement.dispatch == "deepep"
    graphs = [plain, verify(sharing_experts(plain, share_experts_by_deepep if by_deepep else None), plain)]
    passes = tuple(rewrite for rewrite in choose_kernels(spec, target).passes if rewrite not in without)
    alone, shared = fused(graphs, passes, spec, target)[0]
    return alone, shared


CAUSAL: tuple[Pass, ...] = (fuse_latent_attention, fuse_masked_attention)
"""Kernels whose queries see as many keys before them as there are queries, which a part of a sequence does not."""


def _plain_attention(step: TrainingStep) -> Iterator[str]:
    """What one process attends by, and ranks that share sequences do not."""
    if step.sharing is not None and step.sharing.cp > 1:
        for kernel in called(step.graph):
            if kernel in ("gqa_attention", "mla_attention"):
                yield f"train: PyTorch's attention instead of kernels/{kernel}.py where ranks share sequences"


def served(spec: ModelSpec) -> Graphs:
    """What the planner reads of the package's engine: its graph on one device, and where ranks share the experts out.

    How many ranks is the planner's to say: the experts of the second graph are those of all.
    """
    from dsc.compiler.planner.serving.served import Graphs  # takes long to import

    target = target_of(spec)
    kernels, plain = choose_kernels(spec, target), verify(build_graph(spec))

    def prepared(*passes: Pass) -> Graph:
        packed, _ = fused(
            [run(plain, (*passes, partial(pack, positions=spec.max_position_embeddings)))],
            kernels.serving,
            spec,
            target,
        )
        return run(
            fused(packed, kernels.passes, spec, target)[0][0],
            (multiply_by_codes, prepare, *kernels.prepared, as_functions_of_weights),
        )

    alone = prepared(for_serving, with_pages)
    if "moe" not in spec.ffn_kinds:
        return Graphs(alone, alone)
    return Graphs(alone, prepared(partial(share_served_experts, ranks=1), for_serving, with_pages, may_idle))


def emit(program: Program, templates: BaseLoader | None = None, command: str = "") -> dict[str, str]:
    """The package, every file by its path. `command` is what headers say prints it again; by default, for the zoo."""
    from dsc.compiler.emit.package import emit_package, file_printer  # takes long to import

    printer = file_printer(program.spec, program.training, templates, command)
    graphs = program.plain, program.training, program.step, program.serving, program.policies, program.rows
    return emit_package(printer, program.target, *graphs, program.notes, program.plan)


def emit_again(spec: str, command: str) -> dict[str, str]:
    """The files of a package that was emitted before, from the spec in its lock; none of a spec that is refused now."""
    try:
        return emit(build(ModelSpec.model_validate_json(spec)), command=command)
    except (ValidationError, DscError):
        return {}


def compile_spec(source: str | Path) -> tuple[ModelSpec, dict[str, str]]:
    """A path or a zoo name to the files of its package, which is to lie in the working directory."""
    spec = load(source)
    return spec, emit(build(spec), command=regenerate(spec, source))
