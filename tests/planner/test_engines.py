"""Plans in the words of torchtitan and Megatron-LM: names that their sources have, sums that their checks would make.

The names were copied by hand from torchtitan v0.2.2, torchtitan/config/job_config.py, and from Megatron-LM, 22 August
2026, megatron/training/arguments.py and the dataclasses that it makes arguments of.
"""

import re
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.report.engines import CannotBeSaid, megatron, torchtitan
from dsc.compiler.planner.report.plan import Plan, given_plan
from planner.machines import emitted

TITAN = {
    "training": {"local_batch_size", "global_batch_size", "seq_len"},
    "parallelism": {
        *("data_parallel_replicate_degree", "data_parallel_shard_degree", "fsdp_reshard_after_forward"),
        *("tensor_parallel_degree", "context_parallel_degree", "pipeline_parallel_degree"),
        *("expert_parallel_degree", "expert_tensor_parallel_degree", "module_fqns_per_model_part"),
        *("pipeline_parallel_schedule", "pipeline_parallel_microbatch_size"),
        "pipeline_parallel_expert_parallel_overlap",
    },
    "activation_checkpoint": {"mode"},
}
MEGATRON = {
    *("micro-batch-size", "global-batch-size", "seq-length", "tensor-model-parallel-size", "sequence-parallel"),
    *("context-parallel-size", "pipeline-model-parallel-size", "pipeline-model-parallel-layout"),
    *("expert-model-parallel-size", "expert-tensor-parallel-size", "moe-token-dispatcher-type"),
    *("use-distributed-optimizer", "overlap-grad-reduce", "overlap-param-gather"),
    *("use-megatron-fsdp", "data-parallel-sharding-strategy"),
    *("recompute-granularity", "recompute-method", "recompute-num-layers", "recompute-modules"),
    *("bf16", "fp8-format", "fp8-recipe", "use-precision-aware-optimizer", "exp-avg-dtype", "exp-avg-sq-dtype"),
}
V2_LITE = Layout(4, 2, "interleaved", 2, 1, 8, 1, 4, 1, 1, ("norms", "swiglu"), "bf16")
SIZES = [
    V2_LITE,
    replace(V2_LITE, schedule="1f1b", vpp=1, zero=0, ep=1, etp=2, recompute=()),
    replace(V2_LITE, pp=1, vpp=1, schedule="1f1b", tp=1, dp=32, zero=3, recompute=("full",)),
    replace(V2_LITE, pp=1, vpp=1, schedule="1f1b", tp=1, cp=2, dp=16, zero=2, recompute=("experts", "mla_up_proj")),
]


def plan(layout: Layout, name: str = "deepseek-v2-lite") -> Plan:
    return given_plan(emitted(name, "h200", layout.world // 8), layout)


def arguments(text: str) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.startswith("    --")]
    return dict((line.removeprefix("--") + " ").split(" ", 1) for line in lines)  # type: ignore[misc]


def stages_of(layout: str) -> list[dict[str, int]]:
    """Letters of each stage, as docs/user-guide/features/pipeline_parallel_layout.md reads them."""
    found = []
    for stage in layout.strip(' "').split("|"):
        counts: dict[str, int] = {}
        for letter, times in re.findall(r"([EtmL])(?:\*(\d+))?", stage):
            counts[letter] = counts.get(letter, 0) + int(times or 1)
        found.append(counts)
    return found


@pytest.mark.parametrize("layout", SIZES, ids=str)
def test_torchtitan_reads_it_and_its_degrees_make_the_world(layout: Layout) -> None:
    read: dict[str, Any] = tomllib.loads(torchtitan(plan(layout)))
    assert {section: set(keys) - TITAN[section] for section, keys in read.items()} == {name: set() for name in TITAN}
    training, degrees = read["training"], read["parallelism"]
    data = degrees["data_parallel_replicate_degree"] * degrees["data_parallel_shard_degree"]
    model = degrees["tensor_parallel_degree"] * degrees["context_parallel_degree"] * degrees["pipeline_parallel_degree"]
    assert data * model == layout.world
    assert training["global_batch_size"] % (training["local_batch_size"] * data) == 0
    assert data * degrees["context_parallel_degree"] * degrees["tensor_parallel_degree"] % layout.ep == 0
    if layout.pp > 1:
        parts = degrees["module_fqns_per_model_part"]
        assert len(parts) == layout.pp * layout.vpp
        every = [f"layers.{index}" for index in range(27)]
        assert [name for part in parts for name in part] == ["tok_embeddings", *every, "norm", "output"]
        assert training["local_batch_size"] * data == training["global_batch_size"]


@pytest.mark.parametrize("layout", SIZES, ids=str)
def test_megatron_knows_the_arguments_and_every_layer_has_its_stage(layout: Layout) -> None:
    given = arguments(megatron(plan(layout)))
    assert set(given) <= MEGATRON
    sizes = [
        int(given[f"{name}-size"]) for name in ("tensor-model-parallel", "context-parallel", "pipeline-model-parallel")
    ]
    assert layout.world % (sizes[0] * sizes[1] * sizes[2]) == 0
    assert ("sequence-parallel" in given) == (layout.tp > 1)
    if layout.pp > 1:
        stages = stages_of(given["pipeline-model-parallel-layout"])
        assert len(stages) == layout.pp * layout.vpp
        assert sum(stage.get("t", 0) for stage in stages) == 27
        assert stages[0]["E"] == stages[-1]["L"] == 1
    sharded = {0: set(), 1: {"use-distributed-optimizer"}, 2: {"use-megatron-fsdp"}, 3: {"use-megatron-fsdp"}}
    assert {"use-distributed-optimizer", "use-megatron-fsdp"} & set(given) == sharded[layout.zero]


def test_what_has_no_counterpart_is_said() -> None:
    v3 = Layout(16, 2, "interleaved", 1, 1, 64, 1, 64, 1, 1, ("norms", "swiglu"), "fp8")
    ours = plan(v3, "deepseek-v3")
    titan, others = torchtitan(ours), megatron(ours)
    for text in ("Again in backward: norms, swiglu. No counterpart", "Moments in bfloat16 have no counterpart"):
        assert text in titan and text not in others
    assert "Multi-token prediction has no counterpart" in titan and "mtp" not in titan.split("[", 1)[1].split("]]")[0]
    assert "Activations kept in FP8 have no counterpart" in titan and "Activations kept in FP8" in others
    assert arguments(others)["recompute-modules"].split() == ["layernorm", "moe_act"]
    assert arguments(others)["exp-avg-dtype"].strip() == "bf16"
    assert sum(stage.get("m", 0) for stage in stages_of(arguments(others)["pipeline-model-parallel-layout"])) == 1
    assert "moe-token-dispatcher-type flex" in others  # two hops, which an all-to-all does not take


@pytest.mark.parametrize(
    ("say", "layout", "name", "message"),
    [
        (megatron, replace(V2_LITE, schedule="zbv"), "deepseek-v2-lite", "no schedule zbv"),
        (megatron, replace(V2_LITE, schedule="dualpipe-v"), "deepseek-v2-lite", "no schedule dualpipe-v"),
        (torchtitan, replace(V2_LITE, schedule="dualpipe", vpp=1), "deepseek-v2-lite", "no schedule dualpipe:"),
        (torchtitan, replace(V2_LITE, zero=0), "deepseek-v2-lite", r"no shared experts .*zero: 1"),
        (torchtitan, replace(V2_LITE, tp=4, dp=2, etp=2, ep=4), "deepseek-v2-lite", "no etp 2 beside tp 4"),
    ],
)
def test_what_cannot_be_said_is_refused(say: Any, layout: Layout, name: str, message: str) -> None:
    with pytest.raises(CannotBeSaid, match=message):
        say(plan(layout, name))


def test_a_layer_that_is_left_out_is_noticed() -> None:
    """The sum over stages can fail."""
    text = megatron(plan(V2_LITE)).replace("t*3", "t*2", 1)
    assert sum(stage.get("t", 0) for stage in stages_of(arguments(text)["pipeline-model-parallel-layout"])) == 26
