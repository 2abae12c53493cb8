"""Which layouts are legal, why others are not, and that enumeration finds exactly the legal ones."""

import time
from dataclasses import replace
from itertools import product

import pytest

from dsc.compiler.planner.layout.layout import TRIVIAL, Layout, global_batch
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.layout.pins import check_pins
from dsc.compiler.planner.layout.space import LARGEST_MICRO_BATCH, grids, layouts, recompute_sets, variants
from dsc.compiler.planner.pipeline.schedule import SCHEDULES
from dsc.spec.errors import DscError
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import MODELS, names

V3 = load("deepseek-v3")
LLAMA = load("llama-3.1-8b")
PUBLISHED = Layout(16, 1, "dualpipe", 1, 1, 64, 1, 128, 1, 1, ("mla_up_proj", "norms", "swiglu"), "fp8")


def changed(spec: ModelSpec, **sections: object) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | sections)


def test_sizes_of_the_published_plan() -> None:
    assert PUBLISHED.world == 2048
    assert PUBLISHED.edp == 2
    assert PUBLISHED.chunks == 16
    assert PUBLISHED.duplicates == 2
    assert PUBLISHED.micro_batches(15360) == 120
    assert PUBLISHED.stages(3) == (3, 12)
    assert problems(PUBLISHED, V3, 2048, 15360) == ()


# What is changed in a legal layout, and the arithmetic that the error must show.
ILLEGAL = [
    ({"dp": 64}, "16 x 64 x 1 x 1 = 1024, but there are 2048 ranks"),
    ({"ep": 96}, "ep x etp = 96 x 1 = 96 does not divide"),
    ({"ep": 96}, "ep = 96 does not divide 256 experts: 256 = 2 x 96 + 64"),
    ({"etp": 3}, "etp = 3 does not divide 2048 ffn.moe.moe_intermediate_size: 2048 = 682 x 3 + 2"),
    ({"tp": 3}, "tp = 3 does not divide 128 attention heads: 128 = 42 x 3 + 2"),
    ({"tp": 256, "cp": 1}, "tp = 256 does not divide 128 attention heads"),
    ({"cp": 3}, "2 x cp = 6 does not divide 4096 tokens of a sequence: 4096 = 682 x 6 + 4"),
    ({"pp": 64, "dp": 32}, "pp x vpp = 64 x 1 = 64 stages, but the model has 61 layers"),
    ({"micro_batch": 7}, "dp x micro_batch = 128 x 7 = 896 does not divide the global batch of 15360"),
    ({"vpp": 2}, "dualpipe has vpp 1, not 2"),
    ({"schedule": "interleaved"}, "interleaved needs vpp of at least 2"),
    ({"schedule": "interleaved", "vpp": 2}, "120 = 7 x 16 + 8"),
    ({"schedule": "zbv"}, "zbv has vpp 2"),
    ({"schedule": "dualpipe-v"}, "dualpipe-v has vpp 2"),
    ({"pp": 15, "dp": 128}, "must be even"),
    ({"micro_batch": 5}, "needs at least 2 x pp = 32 micro-batches, not 24"),
    ({"zero": 4}, "zero is 0, 1, 2 or 3, not 4"),
    ({"recompute": ("norms", "mla_up_proj")}, "a sorted choice"),
    ({"recompute": ("full", "norms")}, "full leaves nothing to norms"),
]


@pytest.mark.parametrize(("change", "arithmetic"), ILLEGAL)
def test_what_is_illegal_says_why(change: dict[str, object], arithmetic: str) -> None:
    assert any(arithmetic in reason for reason in problems(replace(PUBLISHED, **change), V3, 2048, 15360))


def test_choices_that_a_model_does_not_have() -> None:
    one = replace(TRIVIAL, ep=2, dp=2, recompute=("experts",), activations="fp8")
    reasons = problems(one, LLAMA, 2, 2)
    assert "ep x etp = 2 x 1 = 2, but the model has no experts" in reasons
    assert "recompute: llama-3.1-8b has no experts" in reasons
    assert "activations are kept in fp8 where products read fp8: precision.linear is bf16" in reasons
    assert problems(replace(TRIVIAL, tp=16), LLAMA, 16, 1) == (
        "tp = 16 does not divide 8 key-value heads: 8 = 0 x 16 + 8",
    )


def test_the_global_batch_is_the_specs_or_eight_for_each_gpu() -> None:
    assert global_batch(changed(V3, workload={"global_batch": 15360}), 2048) == 15360
    assert global_batch(changed(V3, workload={}), 2048) == 16384


@pytest.mark.parametrize("name", ["tiny", "deepseek-v2-lite", "llama-3.1-8b"])
@pytest.mark.parametrize("world", [4, 16])
def test_enumeration_finds_the_legal_ones_and_no_others(name: str, world: int) -> None:
    spec, batch = load(name), 2 * world
    found = list(grids(spec, world, batch, 4))
    sizes = [size for size in range(1, world + 1) if world % size == 0]
    length = spec.workload.sequence_length
    every = (
        Layout(pp, vpp, schedule, tp, cp, ep, etp, world // (pp * tp * cp), 0, micro_batch, (), "bf16")
        for pp, tp, cp, ep, etp in product(sizes, sizes, sizes, sizes, sizes)
        if world % (pp * tp * cp) == 0 and tp <= 4 and etp <= tp and cp <= max(1, length // 1024)
        for schedule, vpp, micro_batch in product(SCHEDULES, range(1, 11), range(1, LARGEST_MICRO_BATCH + 1))
    )
    legal = [one for one in every if not problems(one, spec, world, batch)]
    assert sorted(found) == sorted(legal)
    assert len(set(found)) == len(found)


def test_variants_are_legal() -> None:
    for spec in (V3, LLAMA):
        grid = next(grids(spec, 8, 64, 8))
        found = list(variants(grid, spec))
        assert len(found) == 4 * len(recompute_sets(spec)) * (2 if spec is V3 else 1)
        assert not any(problems(one, spec, 8, 64) for one in found)


def test_enumeration_is_the_same_every_time() -> None:
    spec = changed(V3, placement={"zero": 1, "recompute": []})
    assert list(layouts(spec, 16, 64, 8)) == list(layouts(spec, 16, 64, 8))


@pytest.mark.parametrize("name", names(MODELS))
def test_every_zoo_model_has_a_layout_on_one_gpu_and_on_many(name: str) -> None:
    spec = load(name)
    assert next(grids(spec, 1, 8, 8)).world == 1
    assert next(grids(spec, 64, 512, 8)).world == 64


def test_enumerating_is_quick() -> None:
    start = time.perf_counter()
    found = set(grids(V3, 2048, 15360, 8))
    assert time.perf_counter() - start < 5
    assert replace(PUBLISHED, recompute=(), zero=0, activations="bf16") in found


def test_pins_hold() -> None:
    pins = {"pp": 16, "ep": 64, "zero": 1, "recompute": ["swiglu", "norms"]}
    spec = changed(V3, placement=pins)
    check_pins(spec, 2048, 15360, 8)
    found = list(layouts(spec, 2048, 15360, 8))
    assert found
    assert all((one.pp, one.ep, one.zero, one.recompute) == (16, 64, 1, ("norms", "swiglu")) for one in found)


CONTRADICTIONS = [
    ({"pp": 16, "dp": 8, "tp": 16}, 1024, "pp x dp x tp = 16 x 8 x 16 = 2048 does not divide 1024 ranks"),
    (
        {"pp": 2, "dp": 2, "tp": 2, "cp": 1},
        1024,
        "pp x dp x cp x tp = 2 x 2 x 1 x 2 = 8, but there are 1024 ranks",
    ),
    ({"ep": 96}, 1024, "ep = 96 does not divide 256 experts"),
    ({"tp": 3, "pp": 3}, 9, "tp = 3 does not divide 128 attention heads"),
    ({"schedule": "dualpipe", "pp": 1}, 1024, "dualpipe needs at least 2 pipeline ranks"),
    ({"schedule": "1f1b", "vpp": 2}, 1024, "1f1b has vpp 1, not 2"),
    ({"recompute": ["full", "norms"]}, 1024, "full leaves nothing to norms"),
    ({"dispatch": "deepep", "ep": 1}, 1024, "with ep = 1 a rank has all"),
    ({"dispatch": "deepep", "ep": 8, "tp": 2, "etp": 2}, 1024, "etp = 2 cuts them"),
]


@pytest.mark.parametrize(("pins", "world", "arithmetic"), CONTRADICTIONS)
def test_contradictory_pins_say_why(pins: dict[str, object], world: int, arithmetic: str) -> None:
    with pytest.raises(DscError) as error:
        check_pins(changed(V3, placement=pins), world, 8 * world, 8)
    assert any(arithmetic in finding.message for finding in error.value.findings), error.value
    assert {(finding.code, finding.key) for finding in error.value.findings} == {("DSC070", ("placement",))}
