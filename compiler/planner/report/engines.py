"""A plan of training in the words of other engines: the layout as they are told it, and what they have no word for.

Names were read in torchtitan v0.2.2 (torchtitan/config/job_config.py) and in Megatron-LM, main of 22 August 2026,
Megatron Core 0.20.0 (megatron/training/arguments.py, megatron/core/{transformer/transformer_config,
model_parallel_config}.py, docs/user-guide/features/pipeline_parallel_layout.md). Sizes of the model, data and learning
rates are not said: both engines have recipes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.collectives import hops
from dsc.compiler.planner.parts.parts import EMBEDDING, HEAD
from dsc.compiler.planner.report.plan import Plan, where

TITAN, MEGATRON = "torchtitan v0.2.2", "Megatron-LM, main of 22 August 2026 (Megatron Core 0.20.0)"
Lines = Iterator[str]


class CannotBeSaid(ValueError):
    """The engine does not do what the plan chose; the message says what, and how to plan without it."""


def _refuse(engine: str, what: str, pins: str) -> None:
    raise CannotBeSaid(f"{engine} has no {what}: plan without, `placement: {{{pins}}}`")


def _stages(plan: Plan) -> list[list[str]]:
    """The parts of each stage by name, from the first layer to the last."""
    parts = plan.problem.memory.parts
    return [[parts[index].name for index in stage] for stage in plan.problem.stages(plan.layout)]


# torchtitan: a TOML file for --job.config_file.

SCHEDULES = {"1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zbv": "ZBVZeroBubble", "dualpipe-v": "DualPipeV"}
MODULES = {EMBEDDING: ["tok_embeddings"], HEAD: ["norm", "output"]}


def torchtitan(plan: Plan) -> str:
    """Of `[training]`, `[parallelism]` and `[activation_checkpoint]`. Raises CannotBeSaid."""
    layout, spec = plan.layout, plan.problem.spec
    if layout.schedule not in SCHEDULES:
        _refuse(TITAN, f"schedule {layout.schedule}", "schedule: dualpipe-v")
    if layout.ep > 1 and layout.etp not in (1, layout.tp):
        _refuse(TITAN, f"etp {layout.etp} beside tp {layout.tp}", "etp: 1")
    if layout.ep > 1 and layout.zero == 0:
        _refuse(TITAN, "shared experts in replicated data parallelism (ZeRO 0)", "zero: 1")
    together = layout.micro_batches(plan.problem.batch) if layout.pp > 1 else 1
    return _text(
        f"# {_title(plan, TITAN)}",
        "# Into a file for --job.config_file, beside the sizes of the model.",
        "[training]",
        f"local_batch_size = {layout.micro_batch * together}",
        f"global_batch_size = {plan.problem.batch}",
        f"seq_len = {spec.workload.sequence_length}",
        "",
        "[parallelism]",
        *_titan_parallelism(layout),
        *(_titan_pipeline(plan) if layout.pp > 1 else ()),
        "",
        "[activation_checkpoint]",
        *_titan_recompute(layout),
        *_titan_precision(plan),
    )


def _titan_parallelism(layout: Layout) -> Lines:
    sharded = layout.zero > 0
    yield f"data_parallel_replicate_degree = {1 if sharded else layout.dp}"
    yield f"data_parallel_shard_degree = {layout.dp if sharded else 1}"
    if sharded:
        yield f'fsdp_reshard_after_forward = "{"always" if layout.zero == 3 else "never"}"'
    if layout.zero == 1:
        yield "# ZeRO 1 has no counterpart: gradients are sharded too."
    yield f"tensor_parallel_degree = {layout.tp}"
    yield f"context_parallel_degree = {layout.cp}"
    yield f"pipeline_parallel_degree = {layout.pp}"
    yield f"expert_parallel_degree = {layout.ep}"
    if layout.ep > 1:
        yield f"expert_tensor_parallel_degree = {layout.etp}"


def _titan_pipeline(plan: Plan) -> Lines:
    layout, stages = plan.layout, _stages(plan)
    yield f'pipeline_parallel_schedule = "{SCHEDULES[layout.schedule]}"'
    yield f"pipeline_parallel_microbatch_size = {layout.micro_batch}"
    if layout.schedule == "dualpipe-v" and layout.ep > 1:
        yield "pipeline_parallel_expert_parallel_overlap = true"
    if any(part.startswith("mtp.") for stage in stages for part in stage):
        yield "# Multi-token prediction has no counterpart: its modules are left out."
    yield "module_fqns_per_model_part = ["
    for stage in stages:
        names = [name for part in stage if not part.startswith("mtp.") for name in MODULES.get(part, [part])]
        yield f"    {json.dumps(names)},"
    yield "]"


def _titan_recompute(layout: Layout) -> Lines:
    if layout.recompute in ((), ("full",)):
        yield f'mode = "{"full" if layout.recompute else "none"}"'
    else:
        yield f"# Again in backward: {', '.join(layout.recompute)}. No counterpart; of its modes this is the nearest."
        yield 'mode = "selective"'


def _titan_precision(plan: Plan) -> Lines:
    if plan.problem.spec.precision.fp8_products():
        yield "# Products in FP8 with a scale for each block have no counterpart here: see [quantize]."
    if plan.layout.activations == "fp8":
        yield "# Activations kept in FP8 have no counterpart."
    if plan.problem.spec.precision.optimizer.moments == "bf16":
        yield "# Moments in bfloat16 have no counterpart."


# Megatron-LM: arguments of pretrain_gpt.py.

SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
MODULE_OF = {"norms": "layernorm", "mla_up_proj": "mla_up_proj", "swiglu": "moe_act", "experts": "moe"}
LAYOUT_OF = {EMBEDDING: "E", HEAD: "L"}


def megatron(plan: Plan) -> str:
    """An array of bash. Raises CannotBeSaid."""
    layout = plan.layout
    if layout.schedule not in ("1f1b", "interleaved"):
        _refuse(MEGATRON, f"schedule {layout.schedule}", "schedule: interleaved")
    return _text(
        f"# {_title(plan, MEGATRON)}",
        "# For pretrain_gpt.py, beside the sizes of the model.",
        "PLAN_ARGS=(",
        *(line if line.startswith("#") else f"    {line}" for line in _megatron(plan)),
        ")",
    )


def _megatron(plan: Plan) -> Lines:
    layout, spec = plan.layout, plan.problem.spec
    yield f"--micro-batch-size {layout.micro_batch}"
    yield f"--global-batch-size {plan.problem.batch}"
    yield f"--seq-length {spec.workload.sequence_length}"
    yield f"--tensor-model-parallel-size {layout.tp}"
    if layout.tp > 1:
        yield "--sequence-parallel"
    yield f"--context-parallel-size {layout.cp}"
    yield f"--pipeline-model-parallel-size {layout.pp}"
    if layout.pp > 1:
        yield f'--pipeline-model-parallel-layout "{_megatron_layout(plan)}"'
    yield from _megatron_experts(plan)
    yield from _megatron_sharding(layout)
    yield from _megatron_recompute(layout)
    yield from _megatron_precision(plan)


def _megatron_layout(plan: Plan) -> str:
    """Et*3|t*4|...|t*2mL: embedding, layers, modules of multi-token prediction, loss."""
    stages = []
    for stage in _stages(plan):
        letters = [LAYOUT_OF.get(part, "m" if part.startswith("mtp.") else "t") for part in stage]
        counted = [(letter, len(list(group))) for letter, group in groupby(letters)]
        stages.append("".join(letter if count == 1 else f"{letter}*{count}" for letter, count in counted))
    return "|".join(stages)


def _megatron_experts(plan: Plan) -> Lines:
    layout = plan.layout
    if "moe" not in plan.problem.spec.ffn_kinds:
        return
    yield f"--expert-model-parallel-size {layout.ep}"
    yield f"--expert-tensor-parallel-size {layout.etp}"
    if layout.dispatch == "deepep":
        yield "--moe-token-dispatcher-type flex"
        yield "# With DeepEP, which has to be installed."
        return
    yield "--moe-token-dispatcher-type alltoall"
    if hops(layout.ep, layout.etp, plan.problem.hardware) > 1:
        yield "# So a token goes once to each node: --moe-token-dispatcher-type flex, with DeepEP installed."


def _megatron_sharding(layout: Layout) -> Lines:
    if layout.zero == 1:
        yield "--use-distributed-optimizer"
        yield "--overlap-grad-reduce"
        yield "--overlap-param-gather"
    elif layout.zero > 1:
        yield "--use-megatron-fsdp"
        yield f"--data-parallel-sharding-strategy {SHARDING[layout.zero]}"


def _megatron_recompute(layout: Layout) -> Lines:
    if layout.recompute == ("full",):
        yield "--recompute-granularity full"
        yield "--recompute-method uniform"
        yield "--recompute-num-layers 1"
    elif layout.recompute:
        yield "--recompute-granularity selective"
        yield f"--recompute-modules {' '.join(MODULE_OF[name] for name in layout.recompute)}"
        if "swiglu" in layout.recompute:
            yield "# moe_act is of experts alone: SwiGLU of dense layers is kept."
        if "experts" in layout.recompute:
            yield "# moe runs its router again too."


def _megatron_precision(plan: Plan) -> Lines:
    precision = plan.problem.spec.precision
    if precision.parameters == "bf16":
        yield "--bf16"
    if precision.fp8_products():
        yield "--fp8-format e4m3"
        yield "--fp8-recipe blockwise"
    if plan.layout.activations == "fp8":
        yield "# Activations kept in FP8 have no counterpart."
    if precision.optimizer.moments == "bf16":
        yield "--use-precision-aware-optimizer"
        yield "--exp-avg-dtype bf16"
        yield "--exp-avg-sq-dtype bf16"


def _title(plan: Plan, engine: str) -> str:
    return f"{plan.problem.spec.name} on {where(plan.problem.hardware)}, as dsc plans it, for {engine}."


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"


ENGINES: dict[str, Callable[[Plan], str]] = {"torchtitan": torchtitan, "megatron": megatron}
