"""A step on any layout is that of one process: losses, gradient norms, held-out losses; selection biases bit by bit.

Real processes on gloo. In float64 nothing but rounding may be between them; a wrong factor has nowhere to hide.
"""

from collections.abc import Callable
from typing import Any

import pytest

from dsc.compiler.driver import build
from dsc.spec.model import ModelSpec

SameSteps = Callable[..., None]
EP = {"dp": 2, "ep": 2}
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2}
ALL = ["experts", "mla_up_proj", "norms", "swiglu"]
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v": ("deepseek", {**V, "schedule": "dualpipe-v"}),
    "deepseek, dp 2 x ep 2, zero 3": ("deepseek", {**EP, "zero": 3}),
    "llama, pp 2, tied": ("llama", {"pp": 2}),
    "window, dp 2, zero 2": ("window", {"dp": 2, "zero": 2}),
    "deepseek, pp 2 x dp 2 x ep 2, zero 3": ("deepseek", {"pp": 2, **EP, "zero": 3}),
    "deepseek, cp 2 x ep 2": ("deepseek", {"cp": 2, "ep": 2}),
    "documents, pp 2 x dp 2 x ep 2, dualpipe-v": ("deepseek, documents", {**V, "schedule": "dualpipe-v"}),
    "weighed, dp 2": ("deepseek, weighed", {"dp": 2}),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, zero 3": ("deepseek", {**V, "schedule": "dualpipe-v", "zero": 3}),
    "llama, pp 2 x dp 2, zbv, zero 3, tied": ("llama", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "zbv", "zero": 3}),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, all recompute": (
        "deepseek",
        {**V, "schedule": "dualpipe-v", "recompute": ALL},
    ),
    "mixtral, dp 2, recompute": ("mixtral", {"dp": 2, "recompute": ["experts", "norms"]}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "documents, dp 2 x ep 2, zero 3, recompute": (
        "deepseek, documents",
        {**EP, "zero": 3, "recompute": ["mla_up_proj", "swiglu"]},
    ),
    "documents, pp 2 x dp 2 x ep 2, 1f1b": ("deepseek, documents", {"pp": 2, **EP}),
    "documents, pp 2 x dp 2 x ep 2, zbv, full": (
        "deepseek, documents",
        {**V, "schedule": "zbv", "recompute": ["full"]},
    ),
    "documents, window, dp 2, full": ("window, documents", {"dp": 2, "recompute": ["full"]}),
    "documents, window, pp 2, dualpipe-v": ("window, documents", {"pp": 2, "vpp": 2, "schedule": "dualpipe-v"}),
    "weighed, pp 2 x dp 2 x ep 2, dualpipe-v": ("deepseek, weighed", {**V, "schedule": "dualpipe-v"}),
    "weighed, pp 2 x dp 2, micro-batches of 2": ("deepseek, weighed", {"pp": 2, "dp": 2, "micro_batch": 2}),
    "weighed, cp 2 x ep 2": ("deepseek, weighed", {"cp": 2, "ep": 2}),
    "mixtral, pp 2 x dp 2 x ep 2, 1f1b": ("mixtral", {"pp": 2, **EP}),
    "deepseek, dp 2": ("deepseek", {"dp": 2}),
    "deepseek, dp 4 x ep 2": ("deepseek", {"dp": 4, "ep": 2}),
    "deepseek, dp 4 x ep 4, zero 2": ("deepseek", {"dp": 4, "ep": 4, "zero": 2}),
    "deepseek, pp 2": ("deepseek", {"pp": 2}),
    "deepseek, pp 4": ("deepseek", {"pp": 4}),
    "deepseek, pp 2, interleaved": ("deepseek", {"pp": 2, "vpp": 2, "schedule": "interleaved"}),
    "deepseek, pp 2 x dp 2 x ep 2, zbv": ("deepseek", {**V, "schedule": "zbv"}),
    "deepseek, pp 2 x dp 2, micro-batches of 2": ("deepseek", {"pp": 2, "dp": 2, "micro_batch": 2}),
    "deepseek, pp 2 x dp 2 x ep 2, zbv, recompute": (
        "deepseek",
        {**V, "schedule": "zbv", "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "deepseek, dp 2 x ep 2, zero 3, recompute": ("deepseek", {**EP, "zero": 3, "recompute": ["mla_up_proj", "swiglu"]}),
    "deepseek, dp 2 x ep 2, zero 3, full": ("deepseek", {**EP, "zero": 3, "recompute": ["full"]}),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, full": (
        "deepseek",
        {**V, "schedule": "dualpipe-v", "recompute": ["full"]},
    ),
    "window, pp 2, full": ("window", {"pp": 2, "recompute": ["full"]}),
    "llama, dp 4, zero 3": ("llama", {"dp": 4, "zero": 3}),
    "deepseek, pp 2 x dp 2 x ep 2, zero 2": ("deepseek", {"pp": 2, **EP, "zero": 2}),
    "llama, pp 2 x dp 2, zero 3, tied": ("llama", {"pp": 2, "dp": 2, "zero": 3}),
    "llama, pp 2 x dp 2, interleaved, zero 2, tied": (
        "llama",
        {"pp": 2, "vpp": 2, "dp": 2, "schedule": "interleaved", "zero": 2},
    ),
    "deepseek, pp 2 x cp 2 x ep 2, interleaved, zero 3, recompute": (
        "deepseek",
        {
            **{"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "interleaved", "zero": 3},
            "recompute": ["experts", "mla_up_proj", "norms", "swiglu"],
        },
    ),
    "mixtral, pp 2 x dp 2 x tp 2 x ep 2, zero 3, full": (
        "mixtral",
        {"pp": 2, "dp": 2, "tp": 2, "ep": 2, "zero": 3, "recompute": ["full"]},
    ),
    "llama, pp 2 x dp 2, zbv, zero 2, tied": ("llama", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "zbv", "zero": 2}),
    "llama, pp 2 x dp 2, dualpipe-v, zero 2, tied": (
        "llama",
        {"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v", "zero": 2},
    ),
    "llama, pp 2 x dp 2, dualpipe-v, zero 3, tied": (
        "llama",
        {"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v", "zero": 3},
    ),
    "deepseek, pp 2 x dp 2 x ep 2, zbv, zero 2": ("deepseek", {**V, "schedule": "zbv", "zero": 2}),
    "deepseek, pp 2 x dp 2 x ep 2, zbv, zero 3": ("deepseek", {**V, "schedule": "zbv", "zero": 3}),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, zero 2": ("deepseek", {**V, "schedule": "dualpipe-v", "zero": 2}),
    "deepseek, pp 2 x dp 2, dualpipe-v, zero 3": (
        "deepseek",
        {"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v", "zero": 3},
    ),
    "deepseek, pp 2 x dp 4 x ep 2, dualpipe-v, zero 3": (
        "deepseek",
        {**V, "dp": 4, "schedule": "dualpipe-v", "zero": 3},
    ),
    "deepseek, pp 2 x dp 2 x ep 2, zbv, zero 3, recompute": (
        "deepseek",
        {**V, "schedule": "zbv", "zero": 3, "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, zero 2, full": (
        "deepseek",
        {**V, "schedule": "dualpipe-v", "zero": 2, "recompute": ["full"]},
    ),
    "documents, pp 2 x dp 2 x ep 2, dualpipe-v, zero 3": (
        "deepseek, documents",
        {**V, "schedule": "dualpipe-v", "zero": 3},
    ),
    "window, pp 2 x dp 2, zbv, zero 3": ("window", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "zbv", "zero": 3}),
    "deepseek, pp 2 x tp 2 x ep 2, dualpipe-v, zero 3": (
        "deepseek",
        {"pp": 2, "vpp": 2, "tp": 2, "ep": 2, "schedule": "dualpipe-v", "zero": 3},
    ),
    "deepseek, pp 2 x cp 2 x ep 2, dualpipe-v, zero 2": (
        "deepseek",
        {"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "dualpipe-v", "zero": 2},
    ),
    "llama, pp 2 x dp 2, zbv": ("llama", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "zbv"}),
    "mixtral, pp 2 x dp 2 x ep 2, dualpipe-v": ("mixtral", {**V, "schedule": "dualpipe-v"}),
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, recompute": (
        "deepseek",
        {**V, "schedule": "dualpipe-v", "recompute": ["norms", "swiglu"]},
    ),
    **{
        f"deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, {' and '.join(some)}": (
            "deepseek",
            {**V, "schedule": "dualpipe-v", "recompute": some},
        )
        for some in (*([one] for one in ALL), ["mla_up_proj", "norms", "swiglu"])
    },
    **{
        f"deepseek, pp 2 x dp 2 x ep 2, dualpipe-v, zero {zero}, recompute": (
            "deepseek",
            {**V, "schedule": "dualpipe-v", "zero": zero, "recompute": ALL},
        )
        for zero in (2, 3)
    },
    "mixtral, pp 2 x dp 2 x ep 2, dualpipe-v, recompute": (
        "mixtral",
        {**V, "schedule": "dualpipe-v", "recompute": ["experts", "norms"]},
    ),
    "documents, pp 2 x dp 2 x ep 2, dualpipe-v, recompute": (
        "deepseek, documents",
        {**V, "schedule": "dualpipe-v", "recompute": ["mla_up_proj", "norms", "swiglu"]},
    ),
    **{
        f"deepseek, pp 2 x {axis} 2 x ep 2, dualpipe-v, recompute": (
            "deepseek",
            {"pp": 2, "vpp": 2, axis: 2, "ep": 2, "schedule": "dualpipe-v", "recompute": ALL},
        )
        for axis in ("tp", "cp")
    },
    "mixtral, dp 4 x ep 4": ("mixtral", {"dp": 4, "ep": 4}),
    "llama, cp 2": ("llama", {"cp": 2}),
    "llama, cp 2 x pp 2, tied": ("llama", {"cp": 2, "pp": 2}),
    "llama, cp 4, micro-batches of 2": ("llama", {"cp": 4, "micro_batch": 2}),
    "mixtral, cp 2 x ep 2": ("mixtral", {"cp": 2, "ep": 2}),
    "mixtral, cp 2 x dp 2 x ep 4, zero 2": ("mixtral", {"cp": 2, "dp": 2, "ep": 4, "zero": 2}),
    "deepseek, cp 2 x dp 2 x ep 2, zero 3": ("deepseek", {"cp": 2, **EP, "zero": 3}),
    "deepseek, cp 4": ("deepseek", {"cp": 4}),
    "deepseek, cp 2 x pp 2 x ep 2, zbv, recompute": (
        "deepseek",
        {
            **{"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "zbv"},
            "recompute": ["experts", "mla_up_proj", "norms", "swiglu"],
        },
    ),
    "deepseek, cp 2 x pp 2 x ep 2, dualpipe-v": (
        "deepseek",
        {"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "dualpipe-v"},
    ),
    "mixtral, cp 2 x pp 2 x ep 2, dualpipe-v": (
        "mixtral",
        {"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "dualpipe-v"},
    ),
    "deepseek, cp 2 x ep 2, full recompute": ("deepseek", {"cp": 2, "ep": 2, "recompute": ["full"]}),
    "window, cp 2 x dp 2": ("window", {"cp": 2, "dp": 2}),
    "window, pp 2": ("window", {"pp": 2}),
    "window, pp 2 x dp 2, dualpipe-v": ("window", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_one_process(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*MORE[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_as_close_as_its_sums(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]), "float32", within=1e-4)


def test_moments_in_bfloat16_are_shared_too(placed_spec: Any, same_steps: SameSteps) -> None:
    """A moment that lies between two numbers of bfloat16 may become either: 2^-8 of it, once in very many."""
    same_steps(placed_spec("deepseek", {**EP, "zero": 2}, "bf16"), within=1e-6)


@pytest.mark.parametrize("pins", [{"pp": 2, "schedule": "dualpipe"}, {"pp": 2, "dp": 2, "schedule": "dualpipe"}])
def test_what_has_no_code_is_said(pins: dict[str, Any], placed_spec: Any) -> None:
    program = build(ModelSpec.model_validate(placed_spec("llama", pins)))
    assert program.step.sharing is None
    assert any(note.startswith("train: on one device, for there is no code yet for") for note in program.notes)


def test_what_is_left_open_is_chosen_among_what_has_code(placed_spec: Any) -> None:
    spec = placed_spec("deepseek", {"pp": 2, "dp": 2})
    spec["placement"] = {"pp": 2, "ep": 2}
    sharing = build(ModelSpec.model_validate(spec)).step.sharing
    assert sharing is not None and (sharing.pp, sharing.dp, sharing.ep, sharing.zero) == (2, 2, 2, 1)


@pytest.mark.parametrize("recompute", [["full"], ["norms", "swiglu"]])
def test_one_process_makes_again_what_its_plan_says(recompute: list[str], placed_spec: Any) -> None:
    spec = placed_spec("llama", {"recompute": recompute})
    step = build(ModelSpec.model_validate({**spec, "cluster": {"kind": "cpu", "nodes": 1}})).step
    assert step.sharing is None and step.recompute == tuple(recompute)
