"""The ledger adds up, and more ranks, more recomputation or smaller types never need more memory."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from operator import ge
from random import Random

import pytest

from dsc.compiler.driver import build
from dsc.compiler.graph.saved import Storage
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.layout.space import grids, recompute_sets, variants
from dsc.compiler.planner.memory.ledger import MemoryModel
from dsc.compiler.planner.memory.lines import ACTIVATIONS, ASSUMED, GRADIENTS, LOGITS, MASTER, MOMENTS, WEIGHTS
from dsc.compiler.planner.memory.ranks import ENOUGH, FALLING, most_held
from dsc.compiler.planner.parts.recompute import fp8_storages, kept
from dsc.compiler.planner.parts.shard import Elements, elements
from dsc.compiler.planner.pipeline.schedule import SCHEDULES, Schedule, actions, holdings
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.precision import Bf16Linear
from dsc.spec.zoo import MODELS, names

NAMES = ["deepseek-v3", "llama-3.1-405b", "mixtral-8x7b", "minicpm3-4b"]
PUBLISHED = Layout(16, 1, "dualpipe", 1, 1, 64, 1, 128, 1, 1, ("mla_up_proj", "norms", "swiglu"), "fp8")
BATCH = 15360


@cache
def memory(name: str) -> MemoryModel:
    spec = load(name).model_copy(update={"cluster": Machines(kind="h800", nodes=256)})
    return MemoryModel(spec, build(spec).training)


def some_layouts(name: str, world: int, count: int) -> Iterator[Layout]:
    """A sample of legal layouts, the same every time."""
    random = Random(0)
    spec = memory(name).spec
    every = list(grids(spec, world, 8 * world, 8))
    for grid in random.sample(every, min(count, len(every))):
        yield random.choice(list(variants(grid, spec)))


@pytest.mark.parametrize("name", NAMES)
def test_the_ranks_of_a_replica_hold_every_parameter_once(name: str) -> None:
    """Each rank's share, with what several tensor ranks hold in common counted once, is the model."""
    model = memory(name)
    everything = sum(parameter.type.numel.value() for part in model.parts for parameter in part.parameters.values())
    for layout in some_layouts(name, 64, 15):
        stages = model.split(layout)
        held = 0
        for rank in range(layout.pp):
            for stage in layout.stages(rank):
                own = sum((elements(model.parts[index].parameters.values()) for index in stages[stage]), Elements())
                shared = replace(own, replicated=0)
                held += shared.dense_on(layout) * layout.tp + own.replicated
                held += own.experts_on(layout) * layout.ep * layout.etp
        assert held == everything * layout.duplicates, layout


def test_experts_are_told_from_what_every_token_uses() -> None:
    parts = memory("deepseek-v3").parts
    routed = {name for part in parts for name, one in part.parameters.items() if one.is_routed}
    assert {name.split(".", 2)[2] for name in routed if name.startswith("layers.")} == {
        "mlp.gate_up_proj",
        "mlp.down_proj",
    }
    assert len(routed) == 2 * 59
    whole = elements(one for part in parts for one in part.parameters.values())
    assert whole.expert == 59 * 256 * 3 * 7168 * 2048


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_adds_up(name: str) -> None:
    model = memory(name)
    for layout in some_layouts(name, 64, 15):
        stages = model.split(layout)
        roles = model.ledger(layout, 512, stages)
        assert sorted(rank for role in roles for rank in role.ranks) == list(range(layout.pp))
        assert max(role.bytes for role in roles) == model.fullest(layout, 512, stages)
        for role in roles:
            assert all(isinstance(line.bytes, int) and line.bytes > 0 for line in role.lines), layout
            assert all(line.source and line.provenance in ("derived", "assumed") for line in role.lines)
            assert all(line.tensors for line in role.lines if line.provenance == "derived")
            assert len({line.name for line in role.lines}) == len(role.lines)


@pytest.mark.parametrize("name", NAMES)
def test_activation_lines_are_what_the_stages_hold(name: str) -> None:
    """The lines by kind of part sum up, byte for byte, to the stages' bytes times their micro-batches in flight."""
    model = memory(name)
    for layout in some_layouts(name, 64, 15):
        for content in model.ranks.of_ranks(layout, 512, model.split(layout)):
            lines = model._lines(layout, content)
            by_kind = sum(line.bytes for line in lines if line.name.startswith(ACTIVATIONS))
            assert by_kind == model._amounts(layout, content)[ACTIVATIONS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", ["dp", "ep", "tp", "cp"])
def test_more_ranks_never_need_more_bytes(name: str, axis: str) -> None:
    """Twice as many ranks along one axis, stages as before: tensors of the fullest rank do not grow."""
    model = memory(name)
    checked = 0
    for layout in some_layouts(name, 64, 60):
        wider = replace(layout, **{axis: 2 * getattr(layout, axis)})
        if axis == "ep":  # experts fold over the other ranks, which double too
            if layout.ep * layout.etp == 1:
                continue  # on one rank no token is copied for its experts
            wider = replace(wider, dp=2 * layout.dp)
        batch = 8 * 64 * (wider.dp // layout.dp)
        if problems(wider, model.spec, wider.world, batch):
            continue
        stages = model.split(layout)
        before, after = (
            max(role.allocated for role in model.ledger(one, size, stages))
            for one, size in ((layout, 512), (wider, batch))
        )
        assert after <= before, (layout, wider)
        checked += 1
    assert checked > 1 or (axis == "ep" and "experts" not in recompute_sets(model.spec)[1])


@pytest.mark.parametrize("name", names(MODELS))
def test_recomputing_more_never_keeps_more(name: str) -> None:
    spec = load(name)
    model = MemoryModel(spec, build(spec).training)
    sets = recompute_sets(spec)
    for kind, part in {part.kind: part for part in model.parts}.items():
        bytes = {one: _bytes(kept(part.steps, one).storages) for one in sets}
        for less, more in ((a, b) for a in sets for b in sets if set(a) <= set(b) or b == ("full",)):
            assert bytes[more] <= bytes[less], (kind, less, more)


def _bytes(storages: tuple[Storage, ...]) -> int:
    return sum(one.type.bytes.value({"B": 1, "S": 4096}) for one in storages)


# MiB that each choice frees in one V3 layer of 4096 tokens in bfloat16: its two norms of 7168 and those of the latents;
# q, k_nope with v, and k_rope; what SwiGLU gives to the shared expert, because routed experts make theirs again anyway;
# and the routed experts' gate and up.
FREED = {
    ("norms",): 112 + 12 + 4,
    ("mla_up_proj",): 192 + 256 + 0.5,
    ("swiglu",): 16,
    ("experts",): 256,
}


@pytest.mark.parametrize("choice", FREED)
def test_what_a_choice_frees(choice: tuple[str, ...]) -> None:
    spec = memory("deepseek-v3").spec
    wide = spec.model_copy(update={"precision": spec.precision.model_copy(update={"linear": Bf16Linear()})})
    model = MemoryModel(wide, build(wide).training)
    before, after = (
        model.stages.parts.of("MoeLayer.forward", one, "bf16", 1).own.on(PUBLISHED) for one in ((), choice)
    )
    assert before - after == FREED[choice] * 2**20


def test_full_recomputation_keeps_the_input() -> None:
    held = memory("deepseek-v3").stages.parts.of("MoeLayer.forward", ("full",), "bf16", 1)
    assert held.own.on(PUBLISHED) == 4096 * 7168 * 2
    assert [one.type.shape_text() for one, _ in held.shared] == ["[2, S, R]"]


def test_fp8_is_one_byte_and_a_scale_for_every_128() -> None:
    model = memory("deepseek-v3")
    part = next(part for part in model.parts if part.kind == "MoeLayer.forward")
    small = fp8_storages(part.steps)
    numbers = 4096 * (8 * 7168 + 8 * 4096 + 2 * 2048)  # dispatched, gate and up; those of the shared expert
    assert sum(one.type.numel.value({"B": 1, "S": 4096}) for one in small) == numbers
    layouts = (replace(PUBLISHED, recompute=(), activations=one) for one in ("bf16", "fp8"))
    wide, narrow = (model.stages.parts.on("MoeLayer.forward", layout).own.on(PUBLISHED) for layout in layouts)
    attended = 4096 * 128 * 128  # 12 bits and a scale, where there were bfloat16 and codes with a scale
    freed = attended // 2 + attended + 4096 * 128 * 4 - 4096 * 128 * 4
    assert wide - narrow == numbers * 2 - numbers - numbers // 128 * 4 + freed


def test_deepseeks_recipe_keeps_610_mib_of_a_layer() -> None:
    """By hand for one token, from sections 3.2.3 and 3.3.3 of the report; routing is ours.

    Inputs of both norms; latents before their norms with k_rope; attention's result in 12 bits, its log-sum-exp;
    dispatched tokens, gate and up in FP8, all with their scales.
    """
    scaled = 1 + 4 / 128
    token = 2 * 2 * 7168 + 2 * (1536 + 512 + 64) + (1.5 + 4 / 128) * 128 * 128 + 4 * 128
    token += scaled * (8 * 7168 + 2 * 8 * 2048 + 2 * 2048)
    found = memory("deepseek-v3").stages.parts.on("MoeLayer.forward", PUBLISHED).own.on(PUBLISHED)
    routing = found / 4096 - token
    assert 0 < routing < 2400
    assert found / 2**20 == pytest.approx(610, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_holds_more_after_a_while(schedule: str) -> None:
    vpp = {"interleaved": 3, "zbv": 2, "dualpipe-v": 2}.get(schedule, 1)
    for pp in (2, 4, 8):
        short, long = (actions(schedule, pp, vpp, n * pp) for n in (ENOUGH, 3 * ENOUGH))
        for rank in range(pp):
            assert holdings(short, rank) == holdings(long, rank), (pp, rank)


def test_deepseek_v3_as_published() -> None:
    """What each line is made of, by hand: layers 5 to 8 and 57 to 60 on ranks 1 and 14."""
    model = memory("deepseek-v3")
    role = model.ledger(PUBLISHED, BATCH, model.split(PUBLISHED))[1]
    assert role.ranks[0] == 1
    assert role.parts == (tuple(f"layers.{i}" for i in range(5, 9)), tuple(f"layers.{i}" for i in range(57, 61)))
    lines = {line.name: line.bytes for line in role.lines}
    attention = 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    dense = attention + 2 * 7168 + 256 * 7168 + 3 * 7168 * 2048  # router, shared expert
    experts = 256 * 3 * 7168 * 2048
    on_rank = 8 * (dense + experts // 64)
    assert lines[WEIGHTS] == 2 * on_rank
    assert lines[GRADIENTS] == 4 * on_rank
    # Two ranks of the pipeline hold each stage, so 2 x 128 share what is dense and 2 x 2 each expert.
    updated = -(-8 * dense // 256) + 8 * experts // 64 // 4
    assert lines[MASTER] == 4 * updated
    assert lines[MOMENTS] == 2 * {"fp32": 4, "bf16": 2}[model.spec.precision.optimizer.moments] * updated
    assert LOGITS not in lines
    layer = model.stages.parts.on("MoeLayer.forward", PUBLISHED).own.on(PUBLISHED)
    rope = 2 * 4096 * 64 * 4
    assert lines[f"{ACTIVATIONS}MoeLayer.forward"] == 17 * (4 * layer + rope)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_zero_shards(zero: int) -> None:
    model = memory("llama-3.1-405b")
    layout = Layout(1, 1, "1f1b", 1, 1, 1, 1, 64, zero, 1, (), "bf16")
    (role,) = model.ledger(layout, 64, model.split(layout))
    lines = {line.name: line.bytes for line in role.lines}
    count = sum(one.type.numel.value() for part in model.parts for one in part.parameters.values())
    whole, part = count, -(-count // 64)
    assert lines[WEIGHTS] == 2 * (part if zero == 3 else whole)
    assert lines[GRADIENTS] == 4 * (part if zero >= 2 else whole)
    assert lines[MASTER] == 4 * (part if zero >= 1 else whole)
    assert lines[MOMENTS] == 8 * (part if zero >= 1 else whole)
    assert ("gathered weights" in lines) == (zero == 3)


def test_a_borrowed_embedding_costs_a_copy_only_on_another_rank() -> None:
    """MTP reads the embedding: in a V both lie on rank 0, in a straight pipeline the last rank has its own."""
    model = memory("deepseek-v3")
    table = 129280 * 7168
    straight = Layout(16, 1, "1f1b", 1, 1, 64, 1, 128, 1, 1, (), "bf16")
    folded = replace(straight, schedule="dualpipe")
    stages = model.split(straight)
    last = model.ledger(straight, BATCH, stages)[-1]
    own = sum(elements(model.parts[index].parameters.values()).total() for index in stages[15])
    on_rank = model.ranks.elements(stages[15])
    assert on_rank.total() == own + table
    assert last.ranks == (15,)
    ends = model.ranks.elements([*stages[0], *stages[15]]).total()
    assert ends == own + sum(elements(model.parts[index].parameters.values()).total() for index in stages[0])
    assert model.ledger(folded, BATCH, stages)[0].ranks == (0, 15)


def test_assumptions_have_sources() -> None:
    assert all(constant.provenance == "assumed" and constant.source for constant in ASSUMED.values())


def test_in_flight_falls_along_a_straight_pipeline() -> None:
    model = memory("llama-3.1-405b")
    layout = Layout(8, 1, "1f1b", 8, 1, 1, 1, 1, 0, 1, (), "bf16")
    roles = model.ledger(layout, 64, model.split(layout))
    held = [sum(line.bytes for line in role.lines if line.name.startswith(ACTIVATIONS)) for role in roles]
    assert all(first > second for first, second in pairwise(held))


@pytest.mark.parametrize("schedule", FALLING)
def test_no_rank_holds_more_than_the_one_before(schedule: Schedule) -> None:
    """Of any stage at any moment: so the search asks for the first of ranks that hold the same parts, and no other."""
    vpps = (1,) if schedule == "1f1b" else (2, 3)
    for pp, vpp, count in product((2, 3, 4, 8), vpps, (1, 2, 5)):
        held = [most_held(schedule, pp, vpp, count * pp, rank) for rank in range(pp)]
        for more, less in pairwise(held):
            assert all(any(all(map(ge, one, other)) for one in more) for other in less), (pp, vpp, count)


# Elements of one layer on one of eight tensor ranks: what is divided, and what is whole on each of them.
HIDDEN, WIDTH, LATENTS = 7168, 2048, 7168 * (1536 + 512 + 64) + 1536 + 512
DIVIDED = {
    "llama-3.1-405b": (16384 * (2 * 16384 + 2 * 1024) + 3 * 16384 * 53248, 2 * 16384),
    "deepseek-v3": (
        128 * (1536 * 192 + 512 * 256 + 128 * HIDDEN) + 3 * HIDDEN * WIDTH,
        LATENTS + 256 * HIDDEN + 2 * HIDDEN,
    ),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_what_tensor_parallelism_divides(name: str) -> None:
    """Heads, widths of feed-forwards and the vocabulary; norms, routers and projections to latents are whole."""
    model = memory(name)
    layer = elements(next(part for part in model.parts if part.name == "layers.5").parameters.values())
    divided, whole = DIVIDED[name]
    assert (layer.tensor, layer.replicated) == (divided, whole)
    head = elements(model.parts[-1].parameters.values())
    assert head.tensor == model.spec.vocab_size * model.spec.hidden_size
