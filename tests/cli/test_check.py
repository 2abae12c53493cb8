"""dsc check."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsc.spec.zoo import MODELS, names


def test_good_specs_have_a_line_each(run: Any) -> None:
    result = run("check", *names(MODELS))
    assert result.stdout.splitlines() == [f"{name}: ok" for name in names(MODELS)]
    assert not result.stderr


def test_all_errors_of_all_files_at_once(run: Any, bad_spec: Path) -> None:
    other = bad_spec.parent.parent / "DSC061-unused" / "spec.yaml"
    result = run("check", bad_spec, "tiny", other, "no-such-model", code=2)
    assert result.stdout == "tiny: ok\n"
    expected = (bad_spec.parent / "stderr.txt").read_text().replace("spec.yaml:", f"{bad_spec}:")
    assert result.stderr.startswith(expected)
    assert f"{other}:26:3: error[DSC061]" in result.stderr
    assert "no-such-model:1:1: error[DSC001]" in result.stderr


def test_json(run: Any, bad_spec: Path) -> None:
    findings = json.loads(run("check", bad_spec, "tiny", "--format", "json", code=2).stdout)["findings"]
    assert len(findings) == 8
    assert {"code", "message", "key", "help", "file", "line", "column"} == findings[0].keys()
    assert json.loads(run("check", "tiny", "--format", "json").stdout) == {"findings": []}


def test_github(run: Any, bad_spec: Path) -> None:
    result = run("check", bad_spec, "--format", "github", code=2)
    assert result.stdout.startswith(f"::error file={bad_spec},line=1,col=1,title=DSC016::")
    assert not run("check", "tiny", "--format", "github").stdout


@pytest.mark.parametrize("arguments", [(), ("tiny", "--format", "xml"), ("--no-such",)])
def test_usage(run: Any, arguments: tuple[str, ...]) -> None:
    assert "Usage:" in run("check", *arguments, code=2).stderr
