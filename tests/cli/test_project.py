"""dsc.yaml: `dsc compile` without a spec does all that it lists."""

from pathlib import Path
from typing import Any

import pytest

PROJECT = Path("dsc.yaml")


def write_project(text: str) -> None:
    PROJECT.write_text(text, encoding="utf-8")


def files_of(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def two(run: Any) -> None:
    Path("specs").mkdir()
    run("shrink", "tiny", "-o", "specs/small.yaml")
    write_project(
        "packages:\n- {spec: specs/small.yaml, output: src/small}\n- {spec: tiny-window, output: src/window}\n"
    )


def test_compiles_all(run: Any, two: None) -> None:
    """To the bytes that each compiles to alone; then --check passes, until one spec changes."""
    said = run("compile").stdout
    assert said.count("next: read src/") == 2 and "src/small: 33 files written" in said
    run("compile", "specs/small.yaml", "-o", "alone/small")
    run("compile", "tiny-window", "-o", "alone/window")
    assert files_of("src") == files_of("alone")
    assert run("compile", "--check").stdout.count("up to date: ") == 2

    Path("src/window/model.py").unlink()
    checked = run("compile", "--check", code=1).stdout
    assert "up to date: src/small: 0 files" in checked and "missing: src/window/model.py" in checked
    assert checked.endswith("fix: dsc compile tiny-window -o src/window\n")
    assert "src/window: 1 file written" in run("compile").stdout


def test_an_edit_in_one_is_told_and_the_other_is_written(run: Any, two: None) -> None:
    Path("src/small").mkdir(parents=True)
    Path("src/small/model.py").write_text("mine = 1\n")
    result = run("compile", code=1)
    assert "error[DSC040]: src/small/model.py" in result.stderr
    assert Path("src/window/model.py").exists()
    run("compile", "--force")
    run("compile", "--check")


@pytest.mark.parametrize(
    ("text", "place", "code", "part"),
    [
        ("packages:\n- {spec: specs/smal.yaml, output: a}\n", "2:4", "DSC001", "no such file"),
        ("packages:\n- {spec: tiny, output: a}\n- {spec: tiny, output: ./a}\n", "3:16", "DSC044", "packages[0]"),
        ("packages:\n- {spec: tiny, output: a/b}\n- {spec: tiny, output: a}\n", "3:16", "DSC044", "around it"),
        ("packages:\n- {spec: tiny, ouput: a}\n", "2:16", "DSC014", "'ouput'"),
        ("packages:\n- {spec: tiny}\n", "2:3", "DSC013", "'output'"),
        ("packages: {}\n", "1:1", "DSC010", "not a list"),
        ("packages: []\n", "1:1", "DSC011", "a list of 0"),
        ("packages:\n- {spec: tiny, output: ''}\n", "2:16", "DSC011", "is ''"),
        ("packages: [3]\n", "1:12", "DSC010", "packages[0]"),
        ("- tiny\n", "1:1", "DSC006", "not a mapping"),
        ("", "1:1", "DSC006", "empty"),
    ],
)
def test_errors_of_the_file(run: Any, text: str, place: str, code: str, part: str) -> None:
    """Each with its place and a cure, before anything is written."""
    write_project(text)
    told = run("compile", code=2).stderr
    assert f"dsc.yaml:{place}: error[{code}]" in told and part in told and "help: " in told
    assert [path.name for path in Path().iterdir()] == ["dsc.yaml"]


def test_all_errors_of_all_specs_at_once(run: Any, two: None) -> None:
    for name in ("a", "b"):
        Path(f"specs/{name}.yaml").write_text("name: 3\n")
    write_project(
        "packages:\n- {spec: specs/a.yaml, output: a}\n- {spec: tiny, output: t}\n- {spec: specs/b.yaml, output: b}\n"
    )
    told = run("compile", code=2).stderr
    assert "specs/a.yaml:1:1: error" in told and "specs/b.yaml:1:1: error" in told
    assert not Path("t").exists()


def test_without_a_spec_and_without_the_file(run: Any) -> None:
    assert "no SPEC, and no dsc.yaml here" in run("compile", code=2).stderr
    PROJECT.mkdir()
    assert "dsc.yaml:1:1: error[DSC001]" in run("compile", "--check", code=2).stderr


def test_an_output_and_a_project_exclude_each_other(run: Any, two: None) -> None:
    assert "-o is for one SPEC" in run("compile", "-o", "x", code=2).stderr


def test_a_project_is_no_spec(run: Any, two: None) -> None:
    assert "this is a project file, not a spec" in run("check", "dsc.yaml", code=2).stderr
