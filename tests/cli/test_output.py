"""What the verbs print is what stands in tests/cli/golden; and it fits in 80 columns."""

import re
import runpy
from pathlib import Path

import pytest

from dsc.compiler.cli.group import VERBS

OUTPUTS = runpy.run_path(str(Path(__file__).parent / "outputs.py"))
GOLDEN: Path = OUTPUTS["GOLDEN"]
DOCUMENTS = {"schema", "completion"}  # whose output is a file: JSON, a script
MERGING = {"compile-clash", "compile-edited", "compile-no-original"}  # edits, which git does
# Commands to copy, parts of files, and annotations for GitHub: their lines are not broken.
VERBATIM = re.compile(r"^(next: |::|[-+ #])")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    found: dict[str, str] = OUTPUTS["outputs"]()
    return found


def test_every_verb_has_a_golden() -> None:
    shown = {command.split()[0] for command in OUTPUTS["COMMANDS"].values() if not command.endswith("--help")}
    assert shown >= VERBS.keys() - DOCUMENTS


def test_every_command_has_one_golden() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == OUTPUTS["COMMANDS"].keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs_git if name in MERGING else ()) for name in OUTPUTS["COMMANDS"]]
)
def test_what_is_printed_is_the_golden(name: str, printed: dict[str, str]) -> None:
    """`make goldens` accepts what is printed today."""
    assert printed[f"{name}.txt"] == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OUTPUTS["COMMANDS"])
def test_a_terminal_of_80_columns_is_wide_enough(name: str) -> None:
    """What goes to standard output; errors are one line each, for those who search in them."""
    terminal = re.split(r"^--- ", (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
    assert "\u2026" not in terminal, "nothing is cut off"
    long = [line for line in terminal.splitlines()[1:] if len(line) > 80 and not VERBATIM.search(line)]
    assert not long
