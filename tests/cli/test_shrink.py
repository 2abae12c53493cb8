"""dsc shrink: every axis of an architecture survives, no size grows, and what comes out is valid."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.driver import build
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.hf import family
from dsc.spec.checks import check
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk
from dsc.spec.zoo import MODELS, names


def leaves(section: Any, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(section, dict):
        for name, value in section.items():
            yield from leaves(value, f"{key}.{name}")
    else:
        yield key, section


def assert_same_axes(spec: ModelSpec, small: ModelSpec) -> None:
    """Words, switches and numbers that are no size are equal; whole numbers are no larger; null stays null."""
    left_out = {"name", "layers", "cluster", "logit_multiplier", "tokens"}  # ids of tokens have to be in the vocabulary
    dumps = [one.model_dump(exclude=left_out) for one in (spec, small)]
    before, after = (dict(leaves(dump)) for dump in dumps)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, int) and not isinstance(value, bool):
            found = after[key]
            assert isinstance(found, int) and found <= value, key
        else:
            assert after[key] == value, key
    assert set(spec.schedule) == set(small.schedule)
    assert (spec.logit_multiplier == 1) == (small.logit_multiplier == 1)


@pytest.mark.parametrize("name", names(MODELS))
def test_zoo(run: Any, name: str) -> None:
    spec = load(name)
    run("shrink", name, "-o", "small.yaml")
    small = load("small.yaml")
    assert small == shrunk(spec)
    assert small.name == f"{name}-shrunk"
    assert_same_axes(spec, small)
    assert family(small) == family(spec)
    assert compute_stats(small, build(small).training).parameters.total < 2_000_000
    assert shrunk(small) == small


SIZE = st.integers(1, 5000)


@st.composite
def attentions(draw: Any) -> dict[str, object]:
    scaling: dict[str, object] = {"kind": "none"}
    if draw(st.booleans()):
        scaling = {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": draw(SIZE)}
    rope = {"layout": "half", "scaling": scaling}
    heads = draw(st.integers(1, 64))
    if draw(st.booleans()):
        kv_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
        dims = {"num_key_value_heads": kv_heads, "head_dim": 2 * draw(st.integers(1, 100))}
        return {"kind": "gqa", "num_attention_heads": heads, **dims, "rope": rope}
    ranks = {"q_lora_rank": draw(st.none() | SIZE), "kv_lora_rank": draw(SIZE)}
    dims = {name: draw(st.integers(1, 100)) for name in ("qk_nope_head_dim", "v_head_dim")}
    dims["qk_rope_head_dim"] = 2 * draw(st.integers(1, 50))
    return {"kind": "mla", "num_attention_heads": heads, **ranks, **dims, "rope": rope}


@st.composite
def mixtures(draw: Any) -> dict[str, object]:
    n_group, per_group = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    topk_group = draw(st.integers(1, n_group))
    chosen = draw(st.integers(1, topk_group * per_group))
    score = None
    if topk_group < n_group:
        score = draw(st.sampled_from(["max", "top2_sum"])) if per_group > 1 else "max"
    router = {"score": "softmax", "n_group": n_group, "topk_group": topk_group, "group_score": score}
    return {
        "n_routed_experts": n_group * per_group,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": draw(SIZE),
        "n_shared_experts": draw(st.integers(0, 4)),
        "router": {**router, "norm_topk_prob": chosen > 1},
    }


@st.composite
def specs(draw: Any) -> ModelSpec:
    layers = draw(st.lists(st.sampled_from(["dense", "moe"]), min_size=1, max_size=12))
    ffn: dict[str, object] = {}
    if "dense" in layers:
        ffn["dense"] = {"intermediate_size": draw(SIZE)}
    if "moe" in layers:
        ffn["moe"] = draw(mixtures())
    length = draw(st.integers(20, 5000))
    return ModelSpec.model_validate(
        {
            "name": draw(st.sampled_from(["a", "a" * 64, "a-b" * 20])),
            "vocab_size": draw(SIZE),
            "hidden_size": draw(SIZE),
            "max_position_embeddings": length + draw(st.integers(5000, 200_000)),
            "logit_multiplier": draw(st.floats(0.001, 4)),
            "norm": {"eps": 1e-6},
            "attention": draw(attentions()),
            "ffn": ffn,
            "layers": [{"repeat": draw(st.integers(1, 90)), "ffn": kind} for kind in layers],
            "mtp": draw(st.none() | st.builds(lambda depth: {"depth": depth}, st.integers(1, 16))),
            "workload": {"sequence_length": length},
        }
    )


@settings(deadline=None, max_examples=300)
@given(specs())
def test_any_valid_spec_shrinks_to_a_valid_one(spec: ModelSpec) -> None:
    assert not check(spec)
    small = shrunk(spec)
    assert not check(small)
    assert_same_axes(spec, small)
    assert shrunk(small) == small
