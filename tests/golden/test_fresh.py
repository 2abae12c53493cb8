"""generated/ holds what the compiler emits today, to the byte: no file is stale, missing or left over."""

import runpy
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path

import pytest

from dsc.compiler.driver import compile_spec
from dsc.spec.loader import load

GENERATED = Path(__file__).parents[2] / "generated"
ACCEPT = runpy.run_path(str(Path(__file__).parents[1] / "accept_goldens.py"))
SOURCES: tuple[str | Path, ...] = (*ACCEPT["SPECS"], ACCEPT["SERVED"])
REMEDY = "If the change is meant, accept it with `make goldens` and review the diff."


def files_under(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(paths)}


def differences(golden: Mapping[str, str], emitted: Mapping[str, str]) -> str:
    """A unified diff from what stands in generated/ to what is emitted; empty if they are the same."""
    diffs = [f"only in generated/: {name}" for name in golden.keys() - emitted.keys()]
    for name, text in emitted.items():
        if name not in golden:
            diffs.append(f"missing in generated/: {name}")
        elif golden[name] != text:
            lines = golden[name].splitlines(), text.splitlines()
            diffs += unified_diff(*lines, f"generated/{name}", f"emitted/{name}", lineterm="")
    return "\n".join(diffs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: Path(source).name)
def test_golden_is_what_is_emitted(source: str | Path) -> None:
    spec, emitted = compile_spec(source)
    compare(GENERATED / spec.package_name, emitted)


@pytest.mark.parametrize("folder", ACCEPT["PLANNED"])
def test_golden_of_a_plan_is_what_is_emitted(folder: str) -> None:
    compare(GENERATED / folder, ACCEPT["planned_package"](ACCEPT["PLANNED"][folder]))


def compare(folder: Path, emitted: Mapping[str, str]) -> None:
    if found := differences(files_under(folder), emitted):
        pytest.fail(f"{found}\n\n{REMEDY}", pytrace=False)


def test_every_folder_is_a_golden() -> None:
    names = {load(source).package_name for source in SOURCES} | set(ACCEPT["PLANNED"])
    assert {path.name for path in GENERATED.iterdir()} == names, REMEDY


def test_a_stale_a_missing_and_an_extra_file_are_each_named() -> None:
    golden = {"same.py": "a = 1\n", "stale.py": "a = 1\n", "extra.py": ""}
    found = differences(golden, {"same.py": "a = 1\n", "stale.py": "a = 2\n", "missing.py": ""})
    assert "same.py" not in found
    assert "-a = 1\n+a = 2" in found and "generated/stale.py" in found
    assert "only in generated/: extra.py" in found
    assert "missing in generated/: missing.py" in found
