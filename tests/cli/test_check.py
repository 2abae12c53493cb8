"""dsc check."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.spec.zoo import CLUSTERS, MODELS, names


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


def test_standard_input(run: Any, bad_spec: Path) -> None:
    good = (MODELS / "tiny.yaml").read_text()
    assert run("check", "-", input=good).stdout == "<stdin>: ok\n"
    result = run("check", "-", "tiny", input=bad_spec.read_text(), code=2)
    assert result.stdout == "tiny: ok\n"
    assert result.stderr == (bad_spec.parent / "stderr.txt").read_text().replace("spec.yaml:", "<stdin>:")
    (finding,) = json.loads(run("check", "-", "--format", "json", input="", code=2).stdout)["findings"]
    assert (finding["code"], finding["file"]) == ("DSC006", "<stdin>")
    assert "error[DSC001]" in run("stats", "-", code=2).stderr, "of the other verbs, none waits for a terminal"


def test_what_is_no_spec_is_told_what_it_is(run: Any) -> None:
    run("plan", "tiny", "--cluster", "cpu", "-o", "plan.yaml")
    run("export", "tiny", "-o", "config.json")
    run("compile", "tiny")
    Path("dsc.schema.json").write_text(run("schema").stdout)
    Path("model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {%s}}' % ("\t" + " " * 5000))
    for file, what, help in (
        ("plan.yaml", "a plan", "dsc diff"),
        ("config.json", "a Hugging Face config.json", "help: dsc import config.json -o spec.yaml"),
        ("tiny/dsc.lock.json", "the lock file of a package", "give the spec"),
        ("dsc.schema.json", "a JSON Schema", "give the spec"),
        ("model.safetensors.index.json", "the index of a checkpoint", "give the spec"),
        (
            CLUSTERS / "h800.yaml",
            "the description of a cluster",
            f"cluster: {{kind: {CLUSTERS / 'h800.yaml'}, nodes: 1}}",
        ),
    ):
        for verb in ("check", "stats"):
            stderr = run(verb, file, code=2).stderr
            assert f"{file}:1:1: error[DSC008]: this is {what}, not a spec" in stderr and help in stderr


def test_github(run: Any, bad_spec: Path) -> None:
    result = run("check", bad_spec, "--format", "github", code=2)
    assert result.stdout.startswith(f"::error file={bad_spec},line=1,col=1,title=DSC016::")
    assert not run("check", "tiny", "--format", "github").stdout


@pytest.mark.parametrize("arguments", [(), ("tiny", "--format", "xml"), ("--no-such",)])
def test_usage(run: Any, arguments: tuple[str, ...]) -> None:
    assert "Usage:" in run("check", *arguments, code=2).stderr


@pytest.mark.parametrize("text", ["", "- a\n", "1\n2\n3\n", "a text\n", "# nothing\n"])
def test_what_is_no_mapping_is_refused_by_a_process_that_has_validated_nothing(text: str, tmp_path: Path) -> None:
    """pydantic builds its validators late: what other tests have built does not count."""
    (tmp_path / "spec.yaml").write_text(text)
    dsc = Path(sys.executable).with_name("dsc")
    done = subprocess.run([dsc, "check", "spec.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "error[DSC006]" in done.stderr and "Traceback" not in done.stderr
