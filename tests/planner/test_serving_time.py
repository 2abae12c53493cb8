"""The speed of GPUs that serve: published deployments, the roofline by hand, and how it must move.

No measurement of serving took part in the calibration, so every published figure is a hold-out: its error is counted in
README's line (test_badge.py), and within the uncertainty that the plan states.
"""

import random
from dataclasses import dataclass, replace
from functools import cache

import pytest

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import served
from dsc.compiler.planner.machine.collectives import FP8, Experts, Group, direct_all_to_all
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.report.serving_record import not_emitted
from dsc.compiler.planner.serving.deployment import RESOLUTION, make_serving_plan, option
from dsc.compiler.planner.serving.estimate import (
    ATTENTION,
    DRAFT,
    EXCHANGE,
    EXPERTS,
    IMBALANCE,
    LAUNCHES,
    TENSOR,
    Guesses,
    ServingCost,
    Speed,
)
from dsc.compiler.planner.serving.legal import emitted, servings
from dsc.compiler.planner.serving.memory import Request, Serving, ServingMemory, Storing
from dsc.compiler.planner.serving.pools import Pools, make_pools
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.compiler.planner.serving.work import Load, Work, work_of
from dsc.spec.cluster import Machines
from planner.machines import machine, model

DAY_6 = "open-infra-index, day 6 (February 2025)"
DEEPEP = "DeepEP docs/legacy.md: 128 tokens a GPU, top 8 of 256, FP8 out and BF16 back"
IN_NODE = 0.45  # see test_what_misses_inside_a_node_is_a_fixed_time
HELD_CACHED = 342 / 608  # of the day's input tokens, found in a cache


@cache
def problem(name: str, kind: str, nodes: int, phase: str, context: int) -> ServingProblem:
    spec = model(name)[0].model_copy(update={"cluster": Machines(kind=kind, nodes=nodes)})
    return ServingProblem(spec, build_graph(spec), served(spec), machine(kind, nodes), phase, context)  # type: ignore[arg-type]


def deepseeks(phase: str, nodes: int) -> ServingProblem:
    """The online deployment: what dsc emits, with rows exchanged by DeepEP and experts in FP8."""
    return replace(problem("deepseek-v3", "h800", nodes, phase, 4989), others=True)


def online_decode() -> Speed:
    """EP144 / DP144 on 18 nodes, 2 routed experts a GPU, 4,989 tokens of context, which makes 88 sequences a GPU."""
    load = Load(Serving(1, 144, 2, ep=144), Storing(), Request("decode", 4989), 88)
    return deepseeks("decode", 18).cost.speed(load, Guesses())


def online_prefill() -> Speed:
    """EP32 / DP32, 9 routed experts a GPU. Prompts are taken to be as long as the context of answers, of which the
    cache had 56 %; a step has eight of them."""
    new = round(4989 * (1 - HELD_CACHED))
    load = Load(Serving(1, 32, 9, ep=32), Storing(), Request("prefill", 4989, new, 8), 8)
    return deepseeks("prefill", 4).cost.speed(load, Guesses())


def low_latency(ranks: int, width: float) -> float:
    """Microseconds of one direction for 128 tokens of a GPU."""
    hardware = machine("h800", 32)
    volume = direct_all_to_all(128, 7168, width, Experts(256, 8, 8, 4), Group(ranks), hardware)
    return 1e6 * volume.seconds(hardware)


@dataclass(frozen=True)
class Served:
    name: str
    published: float
    found: float
    tolerance: float
    source: str


SERVED = [
    Served("50 thousand output tokens/s of a node", 14.8,
           8 * online_decode().per_gpu / 1e3, online_decode().uncertainty, DAY_6),
    Served("50 output tokens/s of a user", 21, 1 / online_decode().waited, online_decode().uncertainty, DAY_6),
    Served("50 thousand input tokens/s of a node, cached ones too", 73.7,
           8 * online_prefill().per_gpu / (1 - HELD_CACHED) / 1e3, online_prefill().uncertainty, DAY_6),
    Served("52 microseconds of low-latency dispatch, EP8", 77, low_latency(8, FP8), 0.10, DEEPEP),
    Served("52 microseconds of low-latency dispatch, EP256", 194, low_latency(256, FP8), 0.10, DEEPEP),
    Served("52 microseconds of low-latency combine, EP8", 114, low_latency(8, 2), 0.10, DEEPEP),
    Served("52 microseconds of low-latency combine, EP256", 369, low_latency(256, 2), 0.10, DEEPEP),
]  # fmt: skip


@pytest.mark.parametrize("fact", SERVED, ids=lambda fact: fact.name)
def test_published_deployments(fact: Served) -> None:
    error = fact.found / fact.published - 1
    print(f"{fact.name}: published {fact.published:g}, found {fact.found:.4g} ({error:+.1%}); {fact.source}")
    assert abs(error) <= (IN_NODE if "EP8" in fact.name else fact.tolerance)  # README counts those of EP8 as misses


def test_what_misses_inside_a_node_is_a_fixed_time() -> None:
    """There and back are too fast by the same 31 us, whatever the bytes: what DeepEP's kernels take to cast, count and
    meet, which the network hides. IN_NODE is the band that follows; no step of a plan uses DeepEP inside a node."""
    there, back = 77 - low_latency(8, FP8), 114 - low_latency(8, 2)
    assert there == pytest.approx(31, abs=2) and back == pytest.approx(31, abs=2)


def test_half_the_memory_bandwidth_misses_the_published_day() -> None:
    """The comparison can fail: a decode that reads twice as slowly is not the published one."""
    decode = deepseeks("decode", 18)
    slow = changed(decode.hardware, hbm_bandwidth=decode.hardware.cluster.hbm_bandwidth / 3)
    load = Load(Serving(1, 144, 2, ep=144), Storing(), Request("decode", 4989), 88)
    speed = ServingCost(decode.memory, slow, others=True).speed(load, Guesses())
    assert abs(8 * speed.per_gpu / 14_800 - 1) > speed.uncertainty


def changed(hardware: Hardware, **figures: float) -> Hardware:
    return replace(hardware, cluster=hardware.cluster.model_copy(update=figures))


# The roofline by hand.


def of_step(memory: ServingMemory, serving: Serving) -> tuple[Work, ...]:
    served = memory.served(serving)
    return work_of(served, served.steps, memory)


def llama(sequences: int, context: int, tp: int = 1) -> Speed:
    one = problem("llama-3.1-8b", "h100", 1, "decode", 4096)
    load = Load(Serving(tp, 8 // tp, dense_tp=tp), Storing(), Request("decode", context), sequences)
    return one.cost.speed(load, Guesses())


def test_a_step_of_one_sequence_reads_every_weight_once() -> None:
    """All parameters but the embedding, whose one row counts as activations: 2 bytes each."""
    one = problem("llama-3.1-8b", "h100", 1, "decode", 4096)
    load = Load(Serving(1, 8), Storing(), Request("decode", 1), 1)
    demands = [(work, work.demand(load, one.memory)) for work in of_step(one.memory, load.serving)]
    parameters = one.memory.parameters()
    matrices = [p for name, p in parameters.items() if len(p.type.shape) > 1 and "embed" not in name]
    assert sum(work.count * demand.weights for work, demand in demands) == sum(p.type.bytes.value() for p in matrices)
    products = sum(work.count * demand.flops for work, demand in demands if not work.attends)
    assert products == 2 * sum(p.type.numel.value() for p in matrices)


def test_attention_reads_the_whole_context() -> None:
    """32 layers, keys and values of 8 heads of 128 in bfloat16, for each of 16 sequences of 4,096 tokens."""
    one = problem("llama-3.1-8b", "h100", 1, "decode", 4096)
    load = Load(Serving(1, 8), Storing(), Request("decode", 4096), 16)
    attends = [work for work in of_step(one.memory, load.serving) if work.attends]
    read = sum(work.count * work.demand(load, one.memory).context for work in attends)
    assert read == 16 * 4096 * 32 * 2 * 8 * 128 * 2
    line = next(line for line in llama(16, 4096).lines if line.name == ATTENTION)
    cluster, reached = one.hardware.cluster, one.hardware.calibration.forward["memory"].value
    assert line.seconds == pytest.approx(read / cluster.hbm_bandwidth / reached, rel=0.03)  # queries are read too


def test_experts_are_read_as_far_as_tokens_choose_them() -> None:
    """One token of DeepSeek-V2-Lite reads 6 of 64 experts, many tokens all of them."""
    one = problem("deepseek-v2-lite", "h200", 1, "decode", 4096)
    (experts,) = [work for work in of_step(one.memory, Serving(1, 8, 64, ep=1)) if work.routed]
    alone, many = (
        experts.demand(Load(Serving(1, 8, 64, ep=1), Storing(), Request("decode", 128), count), one.memory).weights
        for count in (1, 4096)
    )
    assert alone / many == pytest.approx(6 / 64, rel=1e-5)
    assert many == pytest.approx(64 * 3 * 2048 * 1408 * 2, rel=1e-5)


def test_lines_add_up_and_say_where_they_are_from() -> None:
    for speed in (online_decode(), online_prefill(), llama(4, 4096, tp=4)):
        assert sum(line.seconds for line in speed.lines) == pytest.approx(speed.seconds)
        assert all(line.seconds > 0 and line.source and line.provenance for line in speed.lines)


def test_a_line_stands_where_it_applies_and_nowhere_else() -> None:
    assert {line.name for line in online_decode().lines} >= {EXPERTS, EXCHANGE, IMBALANCE}
    assert not {line.name for line in llama(4, 4096).lines} & {EXPERTS, EXCHANGE, IMBALANCE, TENSOR, DRAFT}
    assert TENSOR in {line.name for line in llama(4, 4096, tp=4).lines}


def test_a_small_model_waits_for_its_launches() -> None:
    one = problem("tiny", "h100", 1, "decode", 128)
    speed = one.speed(Serving(1, 8, 16, ep=1), one.storing, 1)
    (wait,) = [line for line in speed.lines if line.name == LAUNCHES]
    assert wait.seconds > speed.seconds / 2


# How it must move.


@pytest.mark.parametrize("seed", range(12))
def test_no_token_comes_sooner_for_more_work_or_slower_links(seed: int) -> None:
    """Longer contexts and more sequences never take less time, faster memory and links never more."""
    draw = random.Random(seed)
    name = draw.choice(("llama-3.1-8b", "deepseek-v2-lite", "deepseek-v3", "qwen3-30b-a3b", "mistral-7b", "tiny"))
    one = problem(name, draw.choice(("h800", "mi350x", "l40s")), 4, draw.choice(("decode", "prefill")), 4096)
    serving = draw.choice(list(servings(one)))
    request = Request(one.phase, 4096, 1 if one.phase == "decode" else 1024)
    load = Load(serving, one.storing, request, draw.choice((1, 3, 16, 100)))

    def seconds(load: Load, hardware: Hardware = one.hardware) -> float:
        return ServingCost(one.memory, hardware).speed(load, Guesses()).seconds

    took = seconds(load)
    assert took <= seconds(replace(load, request=replace(request, context=4096 + draw.choice((1, 64, 9000)))))
    assert took <= seconds(replace(load, sequences=load.sequences + draw.choice((1, 7, 400))))
    cluster = one.hardware.cluster
    for figure in ("hbm_bandwidth", "scale_up_achieved", "nic_achieved", "bf16_flops"):
        faster = changed(one.hardware, **{figure: 2 * getattr(cluster, figure)})
        assert seconds(load, faster) <= took
    more = one.cost.speed(replace(load, sequences=2 * load.sequences), Guesses())
    assert more.per_gpu >= one.cost.speed(load, Guesses()).per_gpu * (1 - 1e-9)


def test_guesses_are_worth_what_is_accepted() -> None:
    """Two tokens are checked in one step: without a right guess that costs, with 85 % of them right it pays."""
    base = problem("deepseek-v3", "h800", 18, "decode", 4989)
    serving, sequences = Serving(1, 144, 2, ep=144), 32
    plain, wrong, right = (
        replace(base, acceptance=rate).speed(serving, base.storing, sequences) for rate in (None, 0.0, 0.85)
    )
    assert (plain.tokens, wrong.tokens, right.tokens) == (1, 1, 1.85)
    assert wrong.per_gpu < plain.per_gpu < right.per_gpu
    assert wrong.seconds == right.seconds and DRAFT in {line.name for line in right.lines}


def test_guessing_takes_memory() -> None:
    """The module's 11.6 billion parameters over 144 GPUs, and a 62nd layer of the cache."""
    base = problem("deepseek-v3", "h800", 18, "decode", 4989)
    guessing = replace(base, acceptance=0.85)
    serving = Serving(1, 144, 2, ep=144)
    weights = [sum(line.bytes for line in one.memory.weights(serving, one.storing)) for one in (base, guessing)]
    assert 0.3e9 < weights[1] - weights[0] < 1.2e9
    caches = [one.memory.token_bytes(serving, one.storing) for one in (base, guessing)]
    assert caches == [61 * 576 * 2, 62 * 576 * 2]


# What is chosen.


def test_a_target_is_kept_by_fewer_sequences() -> None:
    base = problem("deepseek-v3", "h800", 18, "decode", 4989)
    free, fast = make_serving_plan(base), make_serving_plan(replace(base, target=0.03))
    assert free.meets and fast.meets
    assert free.chosen.speed and fast.chosen.speed
    assert fast.chosen.speed.waited <= 0.03 < free.chosen.speed.waited
    assert fast.chosen.speed.per_gpu < free.chosen.speed.per_gpu and fast.chosen.batch < free.chosen.batch


def test_a_target_that_nothing_keeps_names_the_fastest() -> None:
    base = replace(problem("llama-3.1-8b", "h100", 1, "decode", 4096), target=0.0001)
    found = make_serving_plan(base)
    assert found.fits and not found.meets and found.chosen.speed
    ours = [serving for serving in servings(base) if emitted(serving, base.experts)]
    waits = [option(base, serving, base.storing).speed for serving in ours]
    assert found.chosen.speed.waited == min(speed.waited for speed in waits if speed)


def test_gpus_divide_a_layer_where_only_so_the_target_is_met() -> None:
    """A token every 5 ms: no GPU reads 15 GiB so fast alone, four together do."""
    base = replace(problem("llama-3.1-8b", "h100", 1, "decode", 4096), target=0.005)
    found = make_serving_plan(base)
    assert found.meets and found.chosen.serving.tp == 4
    assert [text.split(":")[0] for text in not_emitted(found)] == [f"tp {found.chosen.serving.tp}"]


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "phase"),
    [
        ("llama-3.1-8b", "a100", 1, "decode"),
        ("qwen3-30b-a3b", "h100", 2, "decode"),
        ("deepseek-v2-lite", "h200", 1, "prefill"),
        ("mixtral-8x7b", "h100", 1, "decode"),
    ],
)
def test_no_deployment_is_ahead_by_more_than_the_model_tells(name: str, kind: str, nodes: int, phase: str) -> None:
    """Against every one that is emitted, none left out by its bound."""
    one = problem(name, kind, nodes, phase, 2048)
    chosen = make_serving_plan(one).chosen
    ours = [serving for serving in servings(one) if emitted(serving, one.experts)]
    every = [found.speed.per_gpu for serving in ours if (found := option(one, serving, one.storing)).speed]
    assert chosen.speed and every
    assert chosen.speed.per_gpu >= max(every) * (1 - RESOLUTION)


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "phase", "binds"),
    [
        ("deepseek-v2-lite", "h100", 2, "decode", {"ep 4 -> 8": "size", "cache rows in FP8": "spec"}),
        ("kimi-k2", "h800", 8, "decode", {"cache rows in FP8": "spec"}),
    ],
)
def test_what_is_faster_and_not_chosen_says_why(
    name: str, kind: str, nodes: int, phase: str, binds: dict[str, str]
) -> None:
    found = make_serving_plan(problem(name, kind, nodes, phase, 4096))
    assert found.chosen.speed
    faster = [one for one in found.around if one.option.speed and " more, " in one.reason]
    assert {one.change: one.binds for one in faster} == binds
    assert all(": " in one.reason for one in faster)


def test_what_a_person_would_run() -> None:
    """A small model is not divided, and 2,048 GPUs are not one group with seven copies of each expert."""
    small = make_serving_plan(problem("llama-3.1-8b", "a100", 1, "decode", 4096)).chosen
    assert small.serving.tp == 1
    large = make_serving_plan(problem("deepseek-v3", "h800", 256, "decode", 4989)).chosen
    assert large.serving.dp == 2048 and large.serving.ep <= 320 and large.serving.redundant(256) <= 64


def test_dollars_are_the_price_over_the_tokens() -> None:
    speed = llama(32, 4096)
    assert speed.dollars(2.0) == pytest.approx(2.0 / (speed.per_gpu * 3600) * 1e6)
    assert speed.of_all == 8 * speed.per_gpu


# Two pools.


@cache
def pools() -> Pools:
    decode = problem("llama-3.1-8b", "h100", 8, "decode", 2048 + 512)
    return make_pools(problem("llama-3.1-8b", "h100", 8, "prefill", 2048), decode, 512)


def test_pools_share_the_nodes_and_neither_waits_long() -> None:
    found = pools()
    assert sum(found.nodes) == 8 and found.fits and found.meets
    assert found.requests == min(found.offered) > 0
    prefill, decode = found.prefill.problem, found.decode.problem
    for shift in (-1, 1):
        nodes = (found.nodes[0] + shift, found.nodes[1] - shift)
        if min(nodes) > 0:
            other = Pools(make_serving_plan(prefill.on(nodes[0])), make_serving_plan(decode.on(nodes[1])), 512)
            assert other.requests <= found.requests


def test_longer_answers_take_more_of_the_nodes() -> None:
    decode = problem("llama-3.1-8b", "h100", 8, "decode", 2048 + 4096)
    longer = make_pools(problem("llama-3.1-8b", "h100", 8, "prefill", 2048), decode, 4096)
    assert longer.nodes[1] > pools().nodes[1] and longer.gpus_for_one > pools().gpus_for_one


def test_a_prompt_is_attended_to_as_the_engine_does_it() -> None:
    """With keys and values of heads, which takes fewer operations for many new tokens; tokens of answers do not."""
    prefill = problem("deepseek-v3", "h800", 4, "prefill", 4096)
    absorbed = problem("deepseek-v3", "h800", 4, "decode", 4096).memory

    def operations(memory: ServingMemory, new: int) -> float:
        load = Load(Serving(1, 32, 9, ep=32), prefill.storing, Request("prefill", 4096, new), 1)
        return sum(work.count * work.demand(load, memory).flops for work in of_step(memory, load.serving))

    assert operations(prefill.memory, 4096) < operations(absorbed, 4096)
    assert operations(prefill.memory, 1) > operations(absorbed, 1)
