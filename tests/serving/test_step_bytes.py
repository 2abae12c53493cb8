"""Bytes that a decode step of DeepSeek-V3 moves: weights, cache and activations of the ops that are emitted, on one GPU
that would hold it all, against the least that the spec allows, and against codes of FP8 made anew in every step."""

from functools import cache
from typing import NamedTuple

import pytest
from kernels.lab import kernels
from planner.machines import machine

from dsc.compiler import driver
from dsc.compiler.blocks.model import build_graph
from dsc.compiler.ops.fused.pages import AttendLatents
from dsc.compiler.planner.serving.memory import Request, Serving, Storing
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.compiler.planner.serving.work import Load, Work, work_of
from dsc.spec.cluster import Machines
from dsc.spec.loader import load

LAYERS, MIXTURES, EXPERTS, CHOSEN = 61, 58, 256, 8
HEADS, LATENT, ROTARY = 128, 512, 64
ONE_GPU = Serving(1, 1, EXPERTS)
TIMES = {(1, 4096): (1.041, 70.6), (32, 32_768): (1.011, 5.4), (128, 4096): (1.014, 3.9)}
"""Sequences, tokens of each: how many times the floor a step moves, and moved while codes were made in every step."""


class Bytes(NamedTuple):
    weights: float
    cache: float
    activations: float


@cache
def works(kept: bool) -> tuple[tuple[Work, ...], ServingProblem]:
    """The ops of a step; where codes are not `kept`, as the package was printed before it kept them."""
    spec = load("deepseek-v3").model_copy(update={"cluster": Machines(kind="h100", nodes=1)})
    with pytest.MonkeyPatch.context() as patch:
        if not kept:
            patch.setattr(driver, "multiply_by_codes", lambda graph: graph)
        problem = ServingProblem(spec, build_graph(spec), driver.served(spec), machine("h100", 1), "decode", 4096)
    served = problem.memory.served(ONE_GPU)
    return work_of(served, served.steps, problem.memory), problem


def moved(sequences: int, context: int, kept: bool = True) -> Bytes:
    found, problem = works(kept)
    step = Load(ONE_GPU, Storing(), Request("decode", context), sequences)
    weights = cached = activations = 0.0
    for work in found:
        demand = work.demand(step, problem.memory)
        weights += work.count * (demand.weights if kept or not work.step.node.op.in_fp8 else made_and_read(work))
        cached += work.count * demand.context
        activations += work.count * (demand.activations + work.cast(step) + partial_results(work, step))
    return Bytes(weights, cached, activations)


def made_and_read(work: Work) -> float:
    """A weight in bfloat16 read, its codes written, and read by the product; of all experts, chosen or not."""
    return sum(weight.parameter.type.numel.value() * (2 + 1 + 1) for weight in work.weights if weight.parameter)


def partial_results(work: Work, step: Load) -> float:
    """What splits of the tokens leave in float32, written and read; no op says how many splits there are."""
    if not isinstance(work.step.node.op, AttendLatents):
        return 0.0
    (decode,) = kernels(("mla_decode",), "deepseek-v3")
    splits = decode.num_splits(step.sequences, HEADS, step.request.context)
    return 2 * 4 * splits * step.sequences * HEADS * (LATENT + 1) if splits > 1 else 0.0


def floor(sequences: int, context: int) -> float:
    """Each weight that a token of the step needs once, in a byte where the recipe has FP8 (section 3.3.1), and each row
    of the cache once; of routed experts as many as so many tokens choose, if they choose evenly."""
    attention = 7168 * 1536 + 1536 * 24_576 + 7168 * 576 + 16_384 * 7168 + 512 * 32_768
    chosen = EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** sequences)
    mixture = (chosen + 1) * 3 * 7168 * 2048 + 2 * EXPERTS * 7168
    weights = LAYERS * attention + 3 * 3 * 7168 * 18_432 + MIXTURES * mixture + 2 * 7168 * 129_280
    return weights + sequences * context * LAYERS * 2 * (LATENT + ROTARY)


@pytest.mark.parametrize(("sequences", "context"), TIMES)
def test_a_step_moves_little_more_than_the_least(sequences: int, context: int) -> None:
    least, now, before = floor(sequences, context), moved(sequences, context), moved(sequences, context, kept=False)
    assert now.cache == sequences * context * LAYERS * 2 * (LATENT + ROTARY)
    found = round(sum(now) / least, 3), round(sum(before) / least, 1)
    assert found == TIMES[sequences, context] and 1 < found[0] <= 1.15


def test_every_product_reads_its_weights() -> None:
    found, _ = works(kept=True)
    products = [work for work in found if work.multiplies]
    assert sum(work.count for work in products) == LAYERS * 5 + 3 * 2 + MIXTURES * 4 + 1 and all(
        work.weights for work in products
    )
