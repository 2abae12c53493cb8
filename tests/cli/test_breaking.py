"""dsc breaking as a command; what it says of each key is held against reality in tests/breaking."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.facts.breaking_rules import CATEGORIES, RULES
from dsc.compiler.facts.surface import surface


@pytest.fixture
def specs(run: Any) -> tuple[str, str]:
    """Two that differ by the layout of rotated pairs."""
    run("shrink", "tiny", "-o", "old.yaml")
    text = Path("old.yaml").read_text()
    Path("new.yaml").write_text(text.replace("layout: interleaved", "layout: half"))
    return "old.yaml", "new.yaml"


def test_a_break_leads_with_the_verdict(run: Any, specs: tuple[str, str]) -> None:
    shown = run("breaking", *specs, code=1).stdout
    assert shown.startswith("breaking: old.yaml -> new.yaml: meaning\n")
    assert "BRK201 positions are encoded otherwise (meaning)\n  attention.rope.layout: interleaved -> half\n" in shown


def test_nothing_breaks(run: Any, specs: tuple[str, str]) -> None:
    kept = "checkpoints load, they mean the same, imports work, caches and plans fit"
    assert run("breaking", specs[0], specs[0]).stdout == f"compatible: old.yaml -> old.yaml\n  {kept}\n"
    said = run("breaking", *specs, "--only", "checkpoint", "--only", "plan").stdout
    assert said == "compatible: old.yaml -> new.yaml\n  checkpoints load, caches and plans fit\n"


def test_json(run: Any, specs: tuple[str, str]) -> None:
    (found,) = json.loads(run("breaking", *specs, "--format", "json", code=1).stdout)["breaking"]
    assert (found["code"], found["category"], found["key"]) == ("BRK201", "meaning", "attention.rope.layout")
    assert json.loads(run("breaking", specs[0], specs[0], "--format", "json").stdout) == {"breaking": []}


def test_github_points_at_the_key(run: Any, specs: tuple[str, str]) -> None:
    line = 1 + Path("new.yaml").read_text().splitlines().index("    layout: half")
    said = run("breaking", *specs, "--format", "github", code=1).stdout
    assert said.startswith(f"::error file=new.yaml,line={line},col=5,title=BRK201::positions are encoded otherwise: ")


@pytest.mark.needs_git
def test_against_a_revision(run: Any, specs: tuple[str, str]) -> None:
    Path("models").mkdir()
    shutil.copy(specs[0], "models/spec.yaml")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "models"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    assert "compatible: HEAD:models/spec.yaml" in run("breaking", "models/spec.yaml", "--against", "HEAD").stdout
    shutil.copy(specs[1], "models/spec.yaml")
    assert "BRK201" in run("breaking", "models/spec.yaml", "--against", "HEAD", code=1).stdout
    assert "--against nope: " in run("breaking", "models/spec.yaml", "--against", "nope", code=2).stderr
    assert "spec.yaml" not in run("breaking", specs[1], "--against", "HEAD", code=2).stdout


@pytest.mark.parametrize("arguments", [("tiny",), ("tiny", "tiny", "tiny"), ("tiny", "tiny", "--against", "HEAD")])
def test_usage(run: Any, arguments: tuple[str, ...]) -> None:
    assert "give OLD and NEW, or NEW and --against REVISION" in run("breaking", *arguments, code=2).stderr


def test_diff_says_it_too(run: Any, facts: Any, specs: tuple[str, str]) -> None:
    shown = run("diff", *specs, "--breaking", code=1).stdout
    assert shown.startswith("different: 1 key") and "\nbreaking: old.yaml -> new.yaml: meaning\n" in shown
    assert [one["code"] for one in facts("diff", *specs, "--breaking", code=1)["breaking"]] == ["BRK201"]


def test_rules_are_of_a_category_and_in_order() -> None:
    assert list(RULES) == sorted(RULES)
    assert [rule.category for rule in RULES.values()] == sorted(
        (rule.category for rule in RULES.values()), key=CATEGORIES.index
    )


@pytest.mark.parametrize(
    ("old", "new", "accepted"),
    [
        ("a, b", "a, b", True),
        ("a, b", "a, b, c=1", True),
        ("a, b", "a, b, *, c=1", True),
        ("a, b=1", "a, b", False),
        ("a, b", "b, a", False),
        ("a, b", "a", False),
        ("a, b", "a, b, c", False),
        ("a, *, b", "a, b", True),
        ("a, *, b", "a", False),
        ("a", "a, *, b", False),
    ],
)
def test_calls_that_a_new_signature_takes(old: str, new: str, accepted: bool) -> None:
    before, after = (surface({"m.py": f"def f({text}): pass"})["m.f"] for text in (old, new))
    assert before is not None and after is not None
    assert after.accepts_calls_of(before) == accepted


def test_what_is_public() -> None:
    text = "def f(): pass\nclass C:\n    def m(self): pass\n    def _p(self): pass\n    def __init__(self): pass\n"
    assert surface({"a/b.py": text, "kernels/k.py": text, "r.md": ""}).keys() == {
        *("a.b", "a.b.f", "a.b.C", "a.b.C.m", "a.b.C.__init__"),
    }
