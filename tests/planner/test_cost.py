"""The cost model: its laws, and how its closed form relates to the simulation."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.collectives import Group, all_gather
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import parts_of
from dsc.compiler.planner.parts.shard import Elements
from dsc.compiler.planner.pipeline.schedule import Schedule, actions
from dsc.compiler.planner.pipeline.simulate import StageTimes, simulate
from dsc.compiler.planner.time.bounds import pipeline_bound
from dsc.compiler.planner.time.kernels import CLASSES, Asking
from dsc.compiler.planner.time.lines import EXPOSED
from dsc.compiler.planner.time.ops import op_costs
from dsc.compiler.planner.time.step import MANY, CostModel
from dsc.compiler.planner.time.tail import REDUCE, UPDATE
from planner.machines import V3_BATCH, V3_PLAN, balanced, costs, emitted, machine, staged, theirs

V3 = costs("deepseek-v3", "h800", 256)
PLAIN = Layout(16, 1, "1f1b", 1, 1, 8, 1, 16, 1, 1, (), "bf16")


def grid(schedule: Schedule, pp: int, vpp: int) -> Layout:
    return replace(PLAIN, schedule=schedule, pp=pp, vpp=vpp)


def v3_on(hardware: Hardware) -> CostModel:
    return theirs("deepseek-v3", hardware)


def changed(**change: float) -> Hardware:
    hardware = machine("h800", 256)
    return replace(hardware, cluster=hardware.cluster.model_copy(update=change))


# The closed form and the simulation.

seconds = st.floats(0.01, 1.0)
stage_times = st.builds(
    lambda f, b, w, hidden: StageTimes(f, b, w, f + b + w - hidden * min(f, b + w)),
    seconds, seconds, seconds, st.floats(0, 0.9),
)  # fmt: skip
schedules = st.sampled_from(
    [
        *[("1f1b", 4, 1), ("1f1b", 1, 1), ("interleaved", 4, 2), ("interleaved", 2, 3), ("zbv", 4, 2)],
        *[("dualpipe", 4, 1), ("dualpipe", 8, 1), ("dualpipe-v", 4, 2), ("dualpipe-v", 3, 2)],
    ]
)


@settings(max_examples=300, deadline=None)
@given(schedules, st.integers(1, 4), st.data(), st.floats(0, 0.3))
def test_the_closed_form_never_exceeds_the_simulation(
    kind: tuple[Schedule, int, int], rounds: int, data: st.DataObject, transfer: float
) -> None:
    schedule, pp, vpp = kind
    layout = grid(schedule, pp, vpp)
    count = rounds * pp if schedule in ("1f1b", "interleaved") else (rounds + 1) * 2 * pp
    times = data.draw(st.lists(stage_times, min_size=layout.chunks, max_size=layout.chunks))
    step = simulate(actions(schedule, pp, vpp, count), times, transfer).step
    assert pipeline_bound(layout, count, times, transfer) <= step * (1 + 1e-9)


@pytest.mark.parametrize(("pp", "vpp", "count"), [(1, 1, 5), (4, 1, 4), (4, 1, 9), (8, 1, 32), (4, 2, 8), (4, 3, 16)])
def test_of_equal_stages_it_is_the_formula_and_the_simulation(pp: int, vpp: int, count: int) -> None:
    """(m + (p - 1) / v) (F + B) of a rank's v stages."""
    schedule: Schedule = "interleaved" if vpp > 1 else "1f1b"
    times = [StageTimes(1.0, 1.25, 0.75, 3.0)] * (pp * vpp)
    formula = (count * vpp + pp - 1) * 3.0
    assert pipeline_bound(grid(schedule, pp, vpp), count, times, 0.0) == pytest.approx(formula)
    assert simulate(actions(schedule, pp, vpp, count), times).step == pytest.approx(formula)


def test_a_zero_bubble_v_of_equal_thirds_has_none() -> None:
    times = [StageTimes(1.0, 1.0, 1.0, 3.0)] * 8
    assert pipeline_bound(grid("zbv", 4, 2), 16, times, 0.0) == simulate(actions("zbv", 4, 2, 16), times).step


@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipe-v"])
def test_the_bound_is_close_where_there_is_no_formula(schedule: Schedule) -> None:
    layout = grid(schedule, 8, 2 if schedule == "dualpipe-v" else 1)
    times = [StageTimes(1.0, 1.0, 0.8, 2.2)] * layout.chunks
    step = simulate(actions(schedule, 8, layout.vpp, 64), times).step
    assert 0.9 * step < pipeline_bound(layout, 64, times, 0.0) <= step


BATCH = 16384
LAYOUTS = [
    V3_PLAN,
    replace(V3_PLAN, recompute=(), activations="bf16"),
    Layout(16, 1, "1f1b", 1, 1, 64, 1, 128, 1, 1, (), "bf16"),
    Layout(8, 2, "interleaved", 1, 1, 32, 1, 256, 1, 1, ("full",), "bf16"),
    Layout(8, 2, "zbv", 2, 1, 64, 1, 128, 2, 1, (), "bf16"),
    Layout(8, 2, "dualpipe-v", 1, 2, 64, 1, 128, 1, 1, (), "bf16"),
    Layout(4, 1, "1f1b", 4, 2, 32, 2, 64, 3, 1, ("experts",), "bf16"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.schedule}-{one.pp}-{one.tp}-{one.cp}-{one.zero}")
def test_steps_of_whole_layouts(layout: Layout) -> None:
    stages = staged(V3, layout)
    step = V3.step(layout, stages, BATCH)
    assert V3.bound(layout, stages, BATCH) <= step.seconds * (1 + 1e-9)
    assert sum(line.seconds for line in step.lines) == pytest.approx(step.seconds, rel=1e-12)
    assert all(line.seconds >= -1e-9 and line.source for line in step.lines), step.lines
    assert step.seconds >= V3.timeline(layout, stages, layout.micro_batches(BATCH)).step


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv", "dualpipe", "dualpipe-v"])
def test_a_long_step_is_told_by_its_beginning(schedule: Schedule) -> None:
    """Nothing of it is simulated beyond a few micro-batches for each rank, and it takes as long."""
    vpp = 1 if schedule in ("1f1b", "dualpipe") else 2
    layout = replace(V3_PLAN, pp=4, vpp=vpp, schedule=schedule, dp=512, recompute=())
    stages, count = staged(V3, layout), (MANY + 4) * layout.pp
    step = V3.step(layout, stages, count * layout.dp)
    whole = V3.timeline(layout, stages, count).step * (1 + V3.hardware.calibration.sync.value)
    assert step.seconds == pytest.approx(whole + sum(tail_of(V3, layout).values()), rel=1e-9)


# Laws.


def test_doubling_the_micro_batches_doubles_compute() -> None:
    layout = replace(V3_PLAN, schedule="1f1b")
    stages = staged(V3, layout)
    double = V3.step(layout, stages, 2 * BATCH)
    count = layout.micro_batches(BATCH)
    once, twice = (V3.timeline(layout, stages, some).busy for some in (count, 2 * count))
    assert twice == pytest.approx([2 * busy for busy in once])
    assert tail_of(V3, layout) == {line.name: line.seconds for line in double.lines[-3:]}


@pytest.mark.parametrize(
    "key",
    ["hbm_bandwidth", "bf16_flops", "fp8_flops", "scale_up_achieved", "nic_achieved", "nic_bandwidth"],
)
@pytest.mark.parametrize("layout", LAYOUTS[:5], ids=lambda one: one.schedule)
def test_better_hardware_is_never_slower(layout: Layout, key: str) -> None:
    stages = staged(V3, layout)
    better = v3_on(changed(**{key: 1.5 * getattr(V3.hardware.cluster, key)}))
    assert better.step(layout, stages, BATCH).seconds <= V3.step(layout, stages, BATCH).seconds * (1 + 1e-9)


@pytest.mark.parametrize("key", ["nic_latency", "scale_up_latency"])
def test_latency_is_never_faster(key: str) -> None:
    layout = LAYOUTS[4]
    stages = staged(V3, layout)
    worse = v3_on(changed(**{key: 100 * getattr(V3.hardware.cluster, key)}))
    assert worse.step(layout, stages, BATCH).seconds > V3.step(layout, stages, BATCH).seconds


def test_recompute_costs_time_and_no_choice_saves_any() -> None:
    stages = staged(V3, PLAIN)
    plain = V3.stages.costs(PLAIN, stages)[8].times
    for choice in ("experts", "full", "mla_up_proj", "norms", "swiglu"):
        again = V3.stages.costs(replace(PLAIN, recompute=(choice,)), stages)[8].times
        assert again.backward_input > plain.backward_input, choice
        assert (again.forward, again.backward_weight) == (plain.forward, plain.backward_weight)
    full = V3.stages.costs(replace(PLAIN, recompute=("full",)), stages)[8].times
    assert full.backward_input == pytest.approx(plain.backward_input + plain.forward, rel=0.02)


def test_products_cast_again_what_norms_make_again() -> None:
    """Of an input that a norm makes, 2 bytes of an element more are read and 1 is written; where MLA's up-projections
    run again, they cast as they run."""
    problem = emitted("deepseek-v3", "h800", 256)
    spec, graph = problem.spec, problem.graph
    ops = op_costs(parts_of(graph))["MoeLayer.forward"]
    attention, hidden = spec.attention, spec.hidden_size
    latents = attention.q_lora_rank + attention.kv_lora_rank
    for chosen, width in (
        (("norms",), 2 * hidden + latents),
        (("mla_up_proj", "norms"), 2 * hidden),
        (("full",), 0),
        (("mla_up_proj",), 0),
    ):
        again = (op.casts.again.at(1, 4096) for op in ops if Asking(op.recast, op.unless).among(chosen))
        assert sum(again) == 3 * 4096 * width, chosen


def test_without_expert_parallelism_there_is_no_exchange_and_no_imbalance() -> None:
    layer = V3.stages.cost(("MoeLayer.forward",), replace(PLAIN, ep=1))
    assert layer.forward.exchange == layer.backward_input.exchange == 0
    dense, split = V3.stages.cost(("DenseLayer.forward",), PLAIN), V3.stages.cost(("MoeLayer.forward",), PLAIN)
    assert dense.forward.exchange == 0 < split.forward.exchange


def test_a_pair_takes_as_long_as_the_longer_of_compute_and_exchange() -> None:
    four = ("MoeLayer.forward",) * 4
    paired = V3.stages.cost(four, V3_PLAN)
    serial = V3.stages.cost(four, replace(V3_PLAN, schedule="1f1b"))
    assert serial.times.overlapped == pytest.approx(serial.times.forward + serial.times.backward)
    assert max(serial.times.forward, serial.times.backward) < paired.times.overlapped < serial.times.overlapped
    slow = v3_on(changed(nic_achieved=20e9, nic_bandwidth=25e9)).stages.cost(four, V3_PLAN)
    exchange = sum(one.hidden_exchange for one in (slow.forward, slow.backward_input))
    assert slow.times.overlapped == pytest.approx(exchange)


@pytest.mark.parametrize(("tp", "cp"), [(2, 1), (1, 2), (4, 2)])
def test_tensor_and_context_parallelism_divide_compute(tp: int, cp: int) -> None:
    whole = V3.stages.cost(("MoeLayer.forward",), PLAIN)
    part = V3.stages.cost(("MoeLayer.forward",), replace(PLAIN, tp=tp, cp=cp))
    for one, other in zip(whole[:3], part[:3], strict=True):
        assert sum(one.compute) / (tp * cp) <= sum(other.compute) * (1 + 1e-9) < 1.5 * sum(one.compute)
    assert part.forward.other > 0 or cp > 1


@pytest.mark.parametrize(("name", "kind", "sublayers"), [
    ("tiny", "DenseLayer.forward", 2), ("deepseek-v3", "DenseLayer.forward", 2), ("deepseek-v3", "MoeLayer.forward", 2),
    ("mixtral-8x7b", "MoeLayer.forward", 1),
])  # fmt: skip
def test_tensor_parallelism_gathers_and_scatters_around_each_sublayer_that_it_divides(
    name: str, kind: str, sublayers: int
) -> None:
    """Whatever its type: `tiny` is float32. Routed experts alone are divided by other ranks."""
    found = costs(name, "h800", 1)
    layout = replace(PLAIN, pp=1, tp=2, ep=1, dp=4)
    precision = found.spec.precision
    hidden = found.spec.workload.sequence_length * found.spec.hidden_size * (4 if precision.parameters == "fp32" else 2)
    one = all_gather(hidden, Group(2), found.hardware)
    assert found.stages.cost((kind,), layout).forward.other == pytest.approx(sublayers * 2 * one)


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_tensor_parallelism_gathers_once_at_either_end(part: str) -> None:
    """Both divide the vocabulary: one scatters what it makes over the sequence, the other gathers what it reads."""
    found = costs("llama-3.1-8b", "h100", 1)
    hidden = found.spec.workload.sequence_length * found.spec.hidden_size * 2
    for tp in (1, 2, 8):
        layout = replace(PLAIN, pp=1, tp=tp, ep=1, dp=8 // tp)
        one = all_gather(hidden, Group(tp), found.hardware) if tp > 1 else 0.0
        cost = found.stages.cost((part,), layout)
        assert cost.forward.other == pytest.approx(one)
        assert (cost.backward_input.other > 0) == (tp > 1)


def test_zero_3_shows_what_compute_does_not_hide() -> None:
    layout = replace(V3_PLAN, schedule="1f1b", zero=3)
    stages = staged(V3, layout)
    sharded, plain = (V3.step(replace(layout, zero=zero), stages, V3_BATCH) for zero in (3, 1))
    exposed = [sum(line.seconds for line in step.lines if line.name == EXPOSED) for step in (sharded, plain)]
    assert exposed[0] > exposed[1]


def test_the_cpu_is_a_machine_too() -> None:
    tiny = costs("tiny", "cpu", 4)
    layout = Layout(1, 1, "1f1b", 1, 1, 4, 1, 4, 1, 1, (), "bf16")
    step = tiny.step(layout, staged(tiny, layout), 32)
    assert 0.01 < step.seconds < 100
    assert all(line.provenance != "measured" for line in step.lines)


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_other_models_on_one_node(name: str) -> None:
    found = costs(name, "h200", 1)
    for ep, zero in product((1, 8), (1, 3)):
        if ep == 1 or found.spec.ffn.moe:
            layout = Layout(1, 1, "1f1b", 1, 1, ep, 1, 8, zero, 1, (), "bf16")
            step = found.step(layout, staged(found, layout), 64)
            assert 0.1 < step.mfu < 0.7


def test_real_routing_slows_down_all_of_a_mixture_of_experts_and_no_other_layer() -> None:
    factor = V3.hardware.calibration.imbalance.value
    even = v3_on(balanced(V3.hardware))
    for kind, slower in (("MoeLayer.forward", factor), ("DenseLayer.forward", 1.0)):
        real, ideal = V3.stages.cost((kind,), V3_PLAN).times, even.stages.cost((kind,), V3_PLAN).times
        assert (real.forward, real.backward) == pytest.approx((slower * ideal.forward, slower * ideal.backward))


def test_no_stage_is_faster_than_the_host_launches_it() -> None:
    """`tiny` on an H200: its kernels take next to no time, so a layer costs its launches and no less."""
    tiny = costs("tiny", "h200", 1)
    layer = tiny.stages.cost(("DenseLayer.forward",), replace(PLAIN, ep=1, dp=8, pp=1))
    assert sum(layer.forward.compute) > 15 * tiny.hardware.calibration.launch.value
    assert sum(layer.forward.compute) > 2 * 15 * tiny.hardware.calibration.kernel_floor.value


def test_context_parallelism_gathers_latents_and_returns_their_gradients() -> None:
    """kv_latent and k_rope in bfloat16 for 4096 tokens, 7/8 of them from others, before attention."""
    layout = replace(PLAIN, cp=8)
    cost = V3.stages.cost(("DenseLayer.forward",), layout)
    seconds = 4096 * (512 + 64) * 2 * 7 / 8 / 160e9 + 7 * V3.hardware.cluster.scale_up_latency
    assert cost.forward.other == pytest.approx(seconds)
    assert cost.backward_input.other == pytest.approx(seconds)
    again = V3.stages.cost(("DenseLayer.forward",), replace(layout, recompute=("full",)))
    assert again.backward_input.other == pytest.approx(2 * seconds)


def test_keys_and_values_of_grouped_queries_are_gathered() -> None:
    """Llama 3.1 8B: 8 heads of 128, twice, in bfloat16."""
    llama = costs("llama-3.1-8b", "h200", 1)
    cost = llama.stages.cost(("DenseLayer.forward",), replace(PLAIN, pp=1, ep=1, dp=1, cp=8))
    length = llama.spec.workload.sequence_length
    gathered = length * 2 * 8 * 128 * 2
    assert cost.forward.other == pytest.approx(all_gather(gathered, Group(8), llama.hardware))


def test_every_rank_makes_keys_and_values_of_whole_sequences() -> None:
    """kv_b_proj runs for all tokens on each of the ranks that share a sequence; everything else is divided."""
    layer, products = ("DenseLayer.forward",), CLASSES.index("fp8_gemm")
    one, eight = (V3.stages.cost(layer, replace(PLAIN, cp=cp)).forward.compute[products] for cp in (1, 8))
    ops = {op.name.split(".")[-2]: op for op in V3.ops["DenseLayer.forward"] if op.kernel_class == "fp8_gemm"}
    assert [name for name, op in ops.items() if op.of_whole] == ["kv_b_proj"]
    assert one / 8 < eight < one / 2


def test_the_optimizer_touches_its_shard_of_the_parameters() -> None:
    """Llama 3.1 8B, fp32 gradients, master and moments: 4 + 2 x 4 + 4 x 4 + 2 bytes for each of 8.03e9 parameters."""
    llama = costs("llama-3.1-8b", "h200", 1)
    layout = Layout(1, 1, "1f1b", 1, 1, 1, 1, 4, 1, 1, (), "bf16")
    bandwidth = 4.8e12 * llama.hardware.calibration.forward["memory"].value
    for cp, zero, shards in ((1, 0, 1), (1, 1, 4), (2, 1, 8)):
        sharing = replace(layout, cp=cp, zero=zero)
        found = tail_of(llama, sharing)[UPDATE]
        assert found == pytest.approx(30 * 8_030_261_248 / shards / bandwidth)


def test_both_copies_of_a_dualpipe_stage_share_its_optimizer() -> None:
    """A rank holds two stages and shares each with twice as many."""
    stage = Elements(tensor=10**9, replicated=10**6, expert=10**10)
    twice = V3.tail.of_rank(V3_PLAN, stage + stage)
    once = V3.tail.of_rank(replace(V3_PLAN, schedule="1f1b"), stage)
    assert twice[UPDATE] == pytest.approx(once[UPDATE])
    assert twice[REDUCE] > 1.9 * once[REDUCE]


def tail_of(model: CostModel, layout: Layout) -> dict[str, float]:
    stages = staged(model, layout)
    return model.tail.longest(layout, stages, model.stages.times(layout, stages))


def test_zero_1_without_a_pipeline_reduces_beside_the_last_backward() -> None:
    """FSDP starts a layer's reduction when its backward is done: of 34 parts the last is exposed, and the links take
    multiprocessors. Under a pipeline torch reduces after a stage's last backward, and all of it is exposed."""
    llama = costs("llama-3.1-8b", "h200", 1)
    layout = Layout(1, 1, "1f1b", 8, 1, 1, 1, 8, 1, 4, (), "bf16")
    share = llama.hardware.calibration.communication_share.value
    times = llama.stages.times(layout, staged(llama, layout))[0]
    backward = times.backward_input + times.backward_weight
    reduced = llama.tail._alone(layout, staged(llama, layout))[REDUCE]
    assert 0.01 < reduced < backward
    parts = len(staged(llama, layout)[0])
    assert tail_of(llama, layout)[REDUCE] == pytest.approx(reduced / parts + share * reduced)
    piped = replace(layout, pp=2, dp=4)
    assert tail_of(llama, piped) == llama.tail._alone(piped, staged(llama, piped))


def test_the_host_waits_once_in_each_layer_whose_experts_are_shared_out() -> None:
    """Forward alone: backward sends the same rows back."""
    model = emitted("deepseek-v2-lite", "h200", 1).cost
    counted = {kind: sum(op.waits for op in ops) for kind, ops in model.away.items()}
    assert counted == {kind: int(any(op.routed for op in ops)) for kind, ops in model.away.items()}
    assert not any(op.waits for ops in model.ops.values() for op in ops)
