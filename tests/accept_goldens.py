"""Accept what the compiler emits and plans today: packages, figures and plans of the zoo, what the verbs
print, README's count.

Run by `make goldens`; review the diff. `python tests/accept_goldens.py plans` leaves the packages that keep to no plan.
"""

import json
import shutil
import sys
from pathlib import Path
from runpy import run_path
from typing import NamedTuple

from dsc.compiler.cli import main
from dsc.compiler.cli.zoo_figures import zoo_figures
from dsc.compiler.driver import build, compile_spec, emit
from dsc.compiler.emit.command import regenerate
from dsc.compiler.emit.write import write
from dsc.compiler.planner.report.locked import locked_plan
from dsc.spec.loader import load
from dsc.spec.zoo import FIGURES

TESTS = Path(__file__).resolve().parent
LANGUAGE = TESTS.parent / "spec" / "README.md"
GENERATED = TESTS.parent / "generated"
SPECS = ("tiny", "tiny-r1", "tiny-window", "deepseek-v2-lite", "deepseek-v3", "llama-3.1-8b")
SERVED = TESTS / "golden" / "tiny-served.yaml"
"""A package for several ranks, which no model of the zoo asks for."""


class GoldenPlan(NamedTuple):
    """The file's name is that of all of it: deepseek-v3.decode.40-h800.yaml."""

    spec: str
    mode: str
    nodes: int
    kind: str

    @property
    def file(self) -> str:
        return f"{self.spec}.{self.mode}.{self.nodes}-{self.kind}.yaml"


PLANS_FOLDER = TESTS / "planner" / "golden" / "plans"
PLANS = (
    GoldenPlan("deepseek-v3", "train", 256, "h800"),  # 2048 GPUs
    GoldenPlan("deepseek-v3", "decode", 40, "h800"),  # 320
    GoldenPlan("deepseek-v2-lite", "train", 1, "h200"),
    GoldenPlan("llama-3.1-405b", "train", 128, "h100"),  # 1024
    GoldenPlan("tiny", "train", 4, "cpu"),
)
PLANNED = {"deepseek_v3_on_2048_gpus": PLANS[0]}
"""Packages that keep to a plan, by folder; those of SPECS are named after their spec and share nothing."""


def planned_package(plan: GoldenPlan) -> dict[str, str]:
    """What `dsc compile SPEC --plan FILE` emits."""
    spec = load(plan.spec)
    locked = locked_plan(str(PLANS_FOLDER / plan.file), spec, given=True)
    return emit(build(spec, locked=locked), command=regenerate(spec, plan=plan.file))


def write_plan(plan: GoldenPlan, folder: Path) -> int:
    """As `dsc plan` does; its exit code."""
    arguments = ("--mode", plan.mode, "--cluster", plan.kind, "--nodes", str(plan.nodes))
    code = main(["plan", plan.spec, *arguments, "-o", str(folder / plan.file)], standalone_mode=False)
    return int(code or 0)


def accept_packages() -> None:
    for folder in GENERATED.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    for source in (*SPECS, SERVED):
        spec, files = compile_spec(source)
        write(files, GENERATED / spec.package_name)


def accept_planned_packages() -> None:
    for folder, plan in PLANNED.items():
        shutil.rmtree(GENERATED / folder, ignore_errors=True)
        write(planned_package(plan), GENERATED / folder)


def accept_plans() -> None:
    shutil.rmtree(PLANS_FOLDER, ignore_errors=True)
    PLANS_FOLDER.mkdir(parents=True)
    for plan in PLANS:
        assert write_plan(plan, PLANS_FOLDER) == 0, f"{plan.file} does not fit"


def accept_zoo() -> None:
    """What `dsc zoo` prints."""
    text = json.dumps(zoo_figures(), indent=2, sort_keys=True) + "\n"
    FIGURES.write_text(text, encoding="utf-8", newline="\n")


def accept_language() -> None:
    """The reference of the language."""
    from breaking.changes import language

    LANGUAGE.write_text(language(), encoding="utf-8", newline="\n")


def accept_count() -> None:
    """Of the published facts that the planner reproduces."""
    from planner.test_badge import accept  # here, because tests that read this file do not need it

    accept()


if __name__ == "__main__":
    if sys.argv[1:] != ["plans"]:
        accept_packages()
        accept_zoo()
        accept_language()
        run_path(str(TESTS / "cli" / "outputs.py"))["accept"]()
    accept_plans()
    accept_planned_packages()
    accept_count()
