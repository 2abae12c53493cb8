"""The plans of the zoo are what `dsc plan` writes today, to the byte."""

import runpy
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

ACCEPT = runpy.run_path(str(Path(__file__).parents[1] / "accept_goldens.py"))
FOLDER: Path = ACCEPT["PLANS_FOLDER"]
REMEDY = "If the change is meant, accept it with `make goldens` and review the diff."


def difference(golden: Path, text: str) -> str:
    if not golden.exists():
        return f"{golden.name} is missing"
    lines = golden.read_text(encoding="utf-8").splitlines(), text.splitlines()
    return "\n".join(unified_diff(*lines, f"golden/{golden.name}", f"planned/{golden.name}", lineterm="", n=1))


@pytest.mark.parametrize("plan", ACCEPT["PLANS"], ids=lambda plan: plan.file)
def test_golden_is_what_is_planned(plan: Any, tmp_path: Path) -> None:
    assert ACCEPT["write_plan"](plan, tmp_path) == 0
    if found := difference(FOLDER / plan.file, (tmp_path / plan.file).read_text(encoding="utf-8")):
        pytest.fail(f"{found}\n\n{REMEDY}", pytrace=False)


def test_no_plan_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {plan.file for plan in ACCEPT["PLANS"]}, REMEDY


def test_a_stale_and_a_missing_plan_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("fits: true\nworld_size: 4\n")
    assert difference(tmp_path / "a.yaml", "fits: true\nworld_size: 4\n") == ""
    assert "-world_size: 4\n+world_size: 8" in difference(tmp_path / "a.yaml", "fits: true\nworld_size: 8\n")
    assert difference(tmp_path / "b.yaml", "") == "b.yaml is missing"
