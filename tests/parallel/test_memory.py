"""What every rank holds at its fullest moment in a real run, against the ledger of the plan for the same code.

The run counts the bytes of all memory that tensors have (memory.py), and asks nothing of the planner. The allocator's
reserve, which the ledger adds, is of CUDA's allocator.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import problem_of
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.memory.lines import ALLOCATOR, WEIGHTS
from dsc.compiler.planner.report.plan import Plan, given_plan
from dsc.spec.model import ModelSpec

MEMORY = Path(__file__).with_name("memory.py")
BATCH, LENGTH = 16, 128
WITHIN = 0.05
CASES = [
    ("llama", {"dp": 2, "zero": 2}),
    pytest.param("llama", {"dp": 2, "zero": 1}, marks=pytest.mark.slow),
    pytest.param("llama", {"dp": 2, "zero": 3}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 1}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 2}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"dp": 2, "zero": 3}, marks=pytest.mark.slow),
    pytest.param("deepseek", {"pp": 2}, marks=pytest.mark.slow),
]


def specified(placed_spec: Any, model: str, placement: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = placed_spec(model, {"micro_batch": 2, **placement})
    return {**spec, "workload": {"sequence_length": LENGTH, "global_batch": BATCH}}


def planned(spec: dict[str, Any]) -> Plan:
    layout = Layout(**{**spec["placement"], "recompute": tuple(spec["placement"]["recompute"])})
    return given_plan(problem_of(ModelSpec.model_validate(spec)), layout)


def ledger(plan: Plan, without: str = "") -> list[int]:
    """Bytes of every rank."""
    of_role = [sum(line.bytes for line in role.lines if line.name not in (ALLOCATOR, without)) for role in plan.roles]
    of_stage = {rank: size for role, size in zip(plan.roles, of_role, strict=True) for rank in role.ranks}
    each = plan.layout.world // plan.layout.pp
    return [of_stage[rank // each] for rank in range(plan.layout.world)]


@pytest.mark.parametrize(("model", "placement"), CASES, ids=str)
def test_every_rank_holds_what_the_ledger_says(
    model: str, placement: dict[str, Any], placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    spec = specified(placed_spec, model, placement)
    package = package_of(spec, tmp_path)
    out = run_in(sys.executable, str(MEMORY), str(tmp_path), package, str(BATCH), str(LENGTH), folder=tmp_path)
    measured, plan = json.loads(out.strip().splitlines()[-1]), planned(spec)
    differences = [found / said - 1 for found, said in zip(measured, ledger(plan), strict=True)]
    print([f"{difference:+.1%}" for difference in differences])
    assert max(map(abs, differences)) <= WITHIN
    shares_left_out = [found / said - 1 for found, said in zip(measured, ledger(plan, WEIGHTS), strict=True)]
    assert min(shares_left_out) > WITHIN  # a ledger that lacks a line is noticed
