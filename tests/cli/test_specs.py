"""Verbs that make specs or describe them: init, import, export, shrink, schema, explain, doctor."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.hf import export_config, family
from dsc.spec.loader import load
from dsc.spec.pages import PAGES
from dsc.spec.zoo import MODELS, names


def test_init_writes_a_spec_that_compiles(run: Any) -> None:
    assert "dsc check model.yaml" in run("init").stdout
    assert Path("model.yaml").read_text().startswith("# yaml-language-server: $schema=")
    run("init", "My Model.yaml")
    assert load("My Model.yaml").name == "my-model"
    run("compile", "My Model.yaml", "-o", "package")


def test_init_overwrites_only_when_forced(run: Any) -> None:
    Path("model.yaml").write_text("mine")
    assert "--force" in run("init", code=2).stderr
    assert Path("model.yaml").read_text() == "mine"
    run("init", "--force")
    assert load("model.yaml").name == "model"


def test_init_refuses_a_name_that_no_package_can_have(run: Any) -> None:
    assert "error[DSC016]" in run("init", "torch.yaml", code=2).stderr
    assert not Path("torch.yaml").exists()


@pytest.mark.parametrize("name", [name for name in names(MODELS) if family(load(name))])
def test_export_and_import_are_inverse(run: Any, name: str) -> None:
    run("export", name, "-o", "config.json")
    config = json.loads(Path("config.json").read_text())
    assert config == json.loads(run("export", name).stdout) == export_config(load(name))
    assert run("import", "config.json", "-o", "spec.yaml").stdout == "wrote spec.yaml\n"
    assert json.loads(run("export", "spec.yaml").stdout) == config


def test_import_of_a_folder_is_named_after_it(run: Any) -> None:
    Path("My-Model-7B").mkdir()
    run("export", "tiny", "-o", "My-Model-7B/config.json")
    assert "\nname: my-model-7b\n" in run("import", "My-Model-7B").stdout


def test_import_of_what_is_no_config(run: Any) -> None:
    assert "error[DSC030]" in run("import", "no-such.json", code=2).stderr
    Path("config.json").write_text('{"model_type": "bert"}')
    assert "error[DSC031]" in run("import", ".", code=2).stderr


def test_export_of_what_has_no_config(run: Any) -> None:
    run("shrink", "mixtral-8x7b", "-o", "spec.yaml")
    spec = Path("spec.yaml")
    spec.write_text(spec.read_text().replace("norm_topk_prob: true", "norm_topk_prob: false"))
    result = run("export", "spec.yaml", code=2)
    assert "error[DSC031]" in result.stderr and not result.stdout


def test_schema(run: Any) -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["additionalProperties"] is False
    assert {"name", "attention", "ffn", "layers"} <= schema["properties"].keys()
    assert "prefixItems" not in json.dumps(schema), "draft 7 has none"


@pytest.mark.parametrize("code", PAGES)
def test_explain(run: Any, code: str) -> None:
    text = run("explain", code.lower()).stdout
    assert text.startswith(f"{code}: {PAGES[code].title}\n")  # type: ignore[index]
    assert "\nwrong:\n    " in text and "\nright:\n    " in text


def test_explain_of_no_code(run: Any) -> None:
    assert "dsc001" in run("explain", "DSC999", code=2).stderr.lower()


def test_doctor(run: Any) -> None:
    result = run("doctor", "--json", code=None)
    record = json.loads(result.stdout)
    assert result.exit_code == (0 if record["problem"] is None else 1)
    assert {"python", "platform", "executable", "compiler", "emitted_code", "gpus"} <= record.keys()
    assert record["compiler"]["ruff"] and record["emitted_code"]["torch"]
    assert "ruff" in run("doctor", code=None).stdout


def test_doctor_on_another_formatter(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsc.compiler.cli.environment.requires", lambda _: ["click>=8", "ruff==0.0.1"])
    assert "pip install ruff==0.0.1" in run("doctor", code=1).stderr
