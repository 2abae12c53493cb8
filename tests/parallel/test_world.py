"""The plan of DeepSeek-V3 on 2,048 GPUs as the trainer builds it: each role of the pipeline, to the byte."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, in_context, in_tensor, planned
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.memory.lines import MASTER, MOMENTS, WEIGHTS, Role
from dsc.compiler.planner.search.problem import Problem
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

WORLD = Path(__file__).with_name("world.py")
PINS: dict[str, Any] = {"pp": 16, "ep": 64, "schedule": "dualpipe-v", "cp": 1, "tp": 1}
BF16, FP32 = 2, 4


@pytest.mark.parametrize(
    "sharing",
    [
        {},
        pytest.param({"cp": 2}, marks=pytest.mark.slow),
        pytest.param({"tp": 2}, marks=pytest.mark.slow),
        pytest.param({"ep": 32, "etp": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_role_holds_what_the_plan_says(
    sharing: dict[str, int], package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    spec = {**load("deepseek-v3").model_dump(mode="json"), "placement": {**PINS, **sharing}}
    package = package_of(spec, tmp_path)
    ranks = range(PINS["pp"])
    found = json.loads(run_in(sys.executable, str(WORLD), str(tmp_path), package, *map(str, ranks), folder=tmp_path))
    lines = {rank: role for role in ledger(ModelSpec.model_validate(spec)) for rank in role.ranks}
    assert lines.keys() == set(ranks)
    for rank, held in zip(ranks, found, strict=True):
        planned = {line.name: line.bytes for line in lines[rank].lines}
        shared = {int(size): numbers for size, numbers in held["shared"].items()}
        assert sum(shared.values()) * BF16 == planned[WEIGHTS]
        mean = sum(numbers / size for size, numbers in shared.items())
        assert mean * FP32 == planned[MASTER] and mean * 2 * BF16 == planned[MOMENTS]
        assert 1 <= held["master"] / planned[MASTER] < 1.001, "rows do not always divide by the ranks"
        assert held["moments"] == held["master"], "two in bfloat16 for each in float32"


def ledger(spec: ModelSpec) -> tuple[Role, ...]:
    """Of the layout that the package has."""
    sharing = build(spec).step.sharing
    assert sharing is not None and spec.cluster is not None
    kinds = {"schedule": "dualpipe-v", "activations": "bf16", "recompute": sharing.recompute}
    sizes = {"pp": sharing.pp, "dp": sharing.dp, "cp": sharing.cp, "ep": sharing.ep, "zero": sharing.zero}
    layout = Layout(**sizes, **kinds, vpp=2, tp=sharing.tp, etp=sharing.etp, micro_batch=sharing.micro_batch)
    problem = Problem(spec, *planned(spec), hardware(spec.cluster), in_context(spec), in_tensor=in_tensor(spec))
    return problem.memory.ledger(layout, problem.batch, problem.stages(layout))
