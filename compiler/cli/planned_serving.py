"""The plan of GPUs that serve, for `dsc plan --mode prefill`, `decode` or `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.cli.console import console
from dsc.compiler.cli.planned import Planned, refusal
from dsc.compiler.cli.serving_tables import show_pools, show_serving
from dsc.compiler.driver import served
from dsc.compiler.kernels.lowering import lowered
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.report.page import serving_html
from dsc.compiler.planner.report.pools import pools_record, pools_yaml
from dsc.compiler.planner.report.serving_record import serving_record
from dsc.compiler.planner.report.write import serving_yaml
from dsc.compiler.planner.serving.deployment import WAITED, ServingFound, make_serving_plan, smallest_deployment
from dsc.compiler.planner.serving.expert_loads import Loads, read_loads
from dsc.compiler.planner.serving.experts import PlacementError
from dsc.compiler.planner.serving.pools import make_pools
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.compiler.planner.serving.served import Phase
from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class Asked:
    """What the options of `dsc plan` say of serving; None where they say nothing."""

    context: int | None
    redundant: int | None
    loads: str | None
    target_ttft: float | None
    """Milliseconds, as the next."""
    target_tpot: float | None
    price: float | None
    acceptance: float | None
    answer: int | None

    def only_for(self, mode: str) -> None:
        """Raises what another mode is for."""
        modes = {
            "--context": (self.context, ("prefill", "decode", "serve")),
            "--redundant": (self.redundant, ("prefill", "decode", "serve")),
            "--loads": (self.loads, ("prefill", "decode", "serve")),
            "--price": (self.price, ("prefill", "decode", "serve")),
            "--target-ttft": (self.target_ttft, ("prefill", "serve")),
            "--target-tpot": (self.target_tpot, ("decode", "serve")),
            "--acceptance": (self.acceptance, ("decode", "serve")),
            "--answer": (self.answer, ("serve",)),
        }
        for name, (value, theirs) in modes.items():
            if value is not None and mode not in theirs:
                *others, last = (f"--mode {one}" for one in theirs)
                raise click.UsageError(
                    f"{name} is for {' and '.join((', '.join(others), last) if others else (last,))}"
                )


def serving(spec: ModelSpec, machines: Hardware, phase: Phase, asked: Asked) -> Planned:
    problem = _problem(spec, machines, phase, asked, asked.context or spec.workload.sequence_length)
    with console(stderr=True).status("planning"):
        found = make_serving_plan(problem)
    return Planned(
        serving_record(found),
        lambda: serving_yaml(found),
        lambda: serving_html(found),
        None,
        lambda: show_serving(found),
        None if found.meets else lambda: _refused(found),
    )


def two_pools(spec: ModelSpec, machines: Hardware, asked: Asked) -> Planned:
    if asked.answer is None:
        raise click.UsageError("--mode serve needs --answer, the tokens of an answer")
    if machines.nodes < 2:
        raise click.UsageError("--mode serve divides nodes into two pools, and there is one: see --mode decode")
    prompt = asked.context or spec.workload.sequence_length
    prefill = _problem(spec, machines, "prefill", asked, prompt)
    decode = _problem(spec, machines, "decode", asked, prompt + asked.answer)
    with console(stderr=True).status("planning"):
        pools = make_pools(prefill, decode, asked.answer)
    failed = next((one for one in (pools.prefill, pools.decode) if not one.meets), None)
    return Planned(
        pools_record(pools),
        lambda: pools_yaml(pools),
        None,
        None,
        lambda: show_pools(pools),
        None if failed is None else lambda: _refused(failed),
    )


def _problem(spec: ModelSpec, machines: Hardware, phase: Phase, asked: Asked, context: int) -> ServingProblem:
    if asked.acceptance is not None and spec.mtp is None:
        raise click.UsageError(f"--acceptance is of multi-token prediction, which {spec.name} has not")
    spec = lowered(spec).spec
    target = asked.target_tpot if phase == "decode" else asked.target_ttft
    return ServingProblem(
        spec,
        build_graph(spec),
        served(spec),
        machines,
        phase,
        context,
        asked.redundant or 0,
        _loads(spec, asked.loads),
        None if target is None else target / 1e3,
        asked.price,
        asked.acceptance,
    )


def _loads(spec: ModelSpec, path: str | None) -> Loads:
    if path is None:
        return ()
    try:
        return read_loads(Path(path).read_text(encoding="utf-8"), spec)
    except (PlacementError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--loads") from error


def _refused(found: ServingFound) -> str:
    problem, speed = found.problem, found.chosen.speed
    if speed is None:
        what = f" for one sequence of {problem.context:,} tokens"
        return refusal(what, found.chosen.bytes, problem.capacity, problem.hardware, smallest_deployment(problem))
    assert problem.target is not None
    return (
        f"too slow: the fastest deployment takes {1e3 * speed.waited:,.1f} ms {WAITED[problem.phase]}, "
        f"and {1e3 * problem.target:,g} ms were asked for"
    )
