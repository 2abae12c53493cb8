"""What README.md and CONTRIBUTING.md show is true today: excerpts, commands, outputs, paths."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

from dsc.compiler.driver import compile_spec
from dsc.spec.project import Project
from dsc.spec.zoo import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
MODULE = re.compile(r"python -m tiny\.(\w+)\.(\w+)")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every command of dsc or make on a page: in backticks, in a fence, or on an indented line."""
    spans = re.findall(r"`([^`\n]+)`", text)
    blocks = [*fenced(text, r"\w*"), *re.findall(r"^ {4}(?! )(.*)$", text, re.MULTILINE)]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(found) for found in (*spans, *lines) if re.match(r"(dsc|make) [a-z]", found)]


@pytest.fixture(scope="module")
def tiny() -> dict[str, str]:
    return compile_spec("tiny")[1]


def test_the_spec_is_verbatim() -> None:
    excerpt, project = fenced(README, "yaml")
    assert excerpt in (MODELS / "tiny.yaml").read_text(encoding="utf-8")
    Project.model_validate(YAML(typ="safe").load(project))


def test_the_code_is_what_is_emitted(tiny: dict[str, str]) -> None:
    sources = (tiny["dims.py"], tiny["model.py"], compile_spec("deepseek-v3")[1]["model.py"])
    excerpts = fenced(README, "python")
    assert len(excerpts) == 4
    for excerpt in excerpts:
        assert any(excerpt in source for source in sources), "README.md shows code that is not emitted any more"


def test_outputs_are_what_the_commands_print(tmp_path: Path) -> None:
    """Rows may be left out, where `...` says so, and rules; the others stand there in their order."""
    blocks = [block for block in fenced(README, "text") if block.startswith("$ ")]
    assert blocks
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks:
        typed = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
        script = "\n".join(typed)
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode < 2, done.stderr
        printed = iter([line.rstrip() for line in done.stdout.splitlines()])
        for line in block.splitlines()[len(typed) :]:
            assert line.strip() == "..." or line.rstrip() in printed, f"{script} does not print, or not here: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    help = verb_help()
    found = commands(PAGES[page])
    assert found
    for program, word, *options in found:
        if program == "make":
            assert word in targets, word
            continue
        assert re.search(rf"^  {word} ", help, re.MULTILINE), word
        for option in (option for option in options if option.startswith("--")):
            assert option in verb_help(word), f"dsc {word} {option}"


def verb_help(*verb: str) -> str:
    command = [str(Path(sys.executable).parent / "dsc"), *verb, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_table_of_verbs_is_complete() -> None:
    listed = re.findall(r"^\| `dsc ([a-z]+)` \|", README, re.MULTILINE)
    section = verb_help().split("Verbs:")[1]
    assert sorted(listed) == sorted(re.findall(r"^  ([a-z]+)  ", section, re.MULTILINE))


def test_the_modules_of_a_package_exist(tiny: dict[str, str]) -> None:
    modules = MODULE.findall(README)
    assert modules and all(f"{folder}/{module}.py" in tiny for folder, module in modules)
    for line in README.splitlines():
        for folder, module in MODULE.findall(line):
            source = tiny[f"{folder}/{module}.py"]
            assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", line)), line


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    text = PAGES[page]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:spec|compiler|templates|generated|tests|\.ci)/[\w./-]*)`", text)
    assert links
    missing = [path for path in (*links, *named) if not (ROOT / path).exists()]
    assert not missing


def test_the_picture_is_well_formed() -> None:
    ElementTree.parse(ROOT / ".dev" / "pipeline.svg")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-all", "lint", "types", "goldens", "bench", "clean"):
        assert f"make {target} " in listed


def test_every_axis_of_a_plan_is_expanded_before_it_is_used() -> None:
    section = README.partition("## A plan before")[2].partition("\n## ")[0]
    words = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    for axis in ("pp", "vpp", "dp", "cp", "tp", "ep", "etp", "edp"):
        assert len(re.findall(rf"`{axis}`", words)) == 1, axis


def test_what_the_trainer_runs_is_said_beside_the_plan_and_the_link_leads_there() -> None:
    section = README.partition("## A plan before")[2].partition("\n## ")[0]
    (anchor,) = re.findall(r"\]\(#([a-z-]+)\)", section)
    assert anchor in {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^## (.*)$", README, re.MULTILINE)}
