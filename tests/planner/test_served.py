"""What is timed of serving is what is printed: the graph, the rows that its ranks exchange, what its host waits for."""

from dataclasses import replace
from functools import cache

import pytest

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import build, served
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.dispatch import AllToAll
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.serving.deployment import make_serving_plan
from dsc.compiler.planner.serving.estimate import DRAFT, EXCHANGE, HOST, Guesses, Speed
from dsc.compiler.planner.serving.memory import Request, Serving, Storing
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.compiler.planner.serving.work import Load, work_of
from dsc.spec.cluster import Machines
from dsc.spec.model import ModelSpec
from dsc.spec.serving import Serving as Ranks
from planner.machines import machine, model

NODES = 4


def placed(name: str, kind: str) -> ModelSpec:
    return model(name)[0].model_copy(update={"cluster": Machines(kind=kind, nodes=NODES)})


@cache
def problem(name: str, kind: str = "h100") -> ServingProblem:
    spec = placed(name, kind)
    return ServingProblem(spec, build_graph(spec), served(spec), machine(kind, NODES), "decode", 4096)


def decode(found: ServingProblem, serving: Serving, sequences: int = 16, guesses: Guesses = Guesses()) -> Speed:  # noqa: B008
    request = Request("decode", 4096, 1 + guesses.modules)
    return found.cost.speed(Load(serving, Storing(), request, sequences), guesses)


def line(speed: Speed, name: str) -> float:
    return sum(line.seconds for line in speed.lines if line.name == name)


@pytest.mark.parametrize(
    ("name", "kind"), [("deepseek-v3", "h800"), ("deepseek-v2-lite", "a10"), ("llama-3.1-8b", "h100"), ("tiny", "cpu")]
)
def test_the_graph_is_the_one_that_is_printed(name: str, kind: str) -> None:
    assert served(placed(name, kind)).alone.blocks == build(placed(name, kind)).serving.blocks


@pytest.mark.parametrize(("name", "kind"), [("deepseek-v2-lite", "h100"), ("mixtral-8x7b", "h100"), ("tiny", "cpu")])
def test_so_is_the_one_of_ranks_that_share_experts(name: str, kind: str) -> None:
    spec = placed(name, kind)
    printed = build(spec.model_copy(update={"serving": Ranks(ep=4)})).serving

    def lines(graph: Graph) -> dict[str, list[str]]:
        return {key: [node.op.kind for node in block.nodes()] for key, block in graph.blocks.items()}

    assert lines(served(spec).shared) == lines(printed)
    assert lines(served(spec).alone) != lines(printed)


def test_every_layer_sends_a_row_to_each_expert_and_takes_it_back() -> None:
    """DeepSeek-V2-Lite, 26 layers of experts: 16 tokens, 6 experts each, 2,048 numbers in bfloat16, there and back."""
    found, serving = problem("deepseek-v2-lite"), Serving(1, 32, 8, ep=8)
    load = Load(serving, Storing(), Request("decode", 4096), 16)
    graph = found.memory.served(serving)
    rows = [work for work in work_of(graph, graph.steps, found.memory) if isinstance(work.step.node.op, AllToAll)]
    assert sum(work.count * work.sent(load) for work in rows) == 26 * 2 * 16 * 6 * 2048 * 2
    links = found.hardware.cluster
    bytes_there = 16 * 6 * 2048 * 2 * 7 / 8  # seven of eight ranks are others, all of one node
    counts = 64 * 8 * 7 / 8
    each = 2 * bytes_there / links.scale_up_achieved + counts / links.scale_up_achieved + 3 * links.scale_up_latency
    assert line(decode(found, serving), EXCHANGE) == pytest.approx(26 * each)


def test_the_host_waits_once_in_each_layer_of_experts() -> None:
    found = problem("deepseek-v2-lite")
    wait = found.hardware.calibration.host_wait.value
    assert line(decode(found, Serving(1, 32, 8, ep=8)), HOST) == pytest.approx(26 * wait)
    assert line(decode(found, Serving(1, 32, 64, ep=1)), HOST) == 0.0


def test_other_engines_are_ahead_of_what_is_emitted() -> None:
    """They send rows in FP8; the plan says so and chooses what is emitted."""
    found = make_serving_plan(problem("deepseek-v3", "h800"))
    other = replace(problem("deepseek-v3", "h800"), others=True)
    assert found.chosen.speed and found.elsewhere and found.elsewhere.speed
    assert found.elsewhere.speed.per_gpu > found.chosen.speed.per_gpu
    assert found.chosen.serving.redundant(256) == 0 and found.chosen.serving.tp == 1
    assert make_serving_plan(other).elsewhere is None


def test_a_guess_runs_the_printed_module_on_the_tokens_of_the_step() -> None:
    """Twice the tokens take no less, and the module is a layer and the head: more than a sixty-first of the step."""
    found = replace(problem("deepseek-v3", "h800"), acceptance=0.8)
    serving = Serving(1, 32, 8, ep=32)
    few, many = (decode(found, serving, count, found.guesses) for count in (8, 64))
    assert line(few, DRAFT) <= line(many, DRAFT)
    assert line(few, DRAFT) > (few.seconds - line(few, DRAFT)) / 61


def test_a_slower_host_is_noticed() -> None:
    """The wait is a figure of the machine, not of the graph."""
    found, serving = problem("deepseek-v2-lite"), Serving(1, 32, 8, ep=8)
    calibration = found.hardware.calibration
    slower = replace(calibration, host_wait=replace(calibration.host_wait, value=2 * calibration.host_wait.value))
    machine = Hardware(**{**vars(found.hardware), "calibration": slower})
    assert decode(replace(found, hardware=machine), serving).seconds > decode(found, serving).seconds
