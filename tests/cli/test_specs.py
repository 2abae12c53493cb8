"""Verbs that make specs or describe them: init, import, export, shrink, schema, explain, doctor."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.facts.breaking_rules import RULES
from dsc.compiler.hf import export_config, family
from dsc.spec.loader import load
from dsc.spec.pages import PAGES
from dsc.spec.zoo import CLUSTERS, MODELS, names


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


def test_init_gives_a_name_that_a_package_can_have(run: Any) -> None:
    run("init", "torch.yaml")
    assert load("torch.yaml").name == "torch-model"


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
    assert run("explain", code.removeprefix("DSC").lstrip("0")).stdout == text


@pytest.mark.parametrize("code", RULES)
def test_explain_of_a_rule(run: Any, code: str) -> None:
    assert run("explain", code.lower()).stdout.startswith(f"{code}: {RULES[code].title} ({RULES[code].category})\n")


def test_explain_lists_the_codes(run: Any) -> None:
    lines = [line.split(maxsplit=1) for line in run("explain").stdout.splitlines() if line]
    assert [code for code, _ in lines] == [*PAGES, *RULES]
    assert dict(lines)["DSC020"] == PAGES["DSC020"].title


def test_explain_of_a_key(run: Any) -> None:
    text = run("explain", "attention.rope.layout").stdout
    assert "(0, 1), (2, 3)" in text and "takes:\n    interleaved, half\n" in text
    assert "default:\n    none: it has to be there\n" in text
    assert "in config.json of Hugging Face:\n    rope_interleave\n" in text
    heads = run("explain", "attention.num_attention_heads").stdout
    assert "(kind: mla)" in heads and "(kind: gqa or window)" in heads, "kinds that say different things are all shown"
    assert run("explain", "layers.repeat").stdout == run("explain", "layers[].repeat").stdout
    assert "arXiv 2204.02311" in run("explain", "z_loss").stdout


def test_explain_of_what_is_neither(run: Any) -> None:
    assert "did you mean 'attention.rope.layout'?" in run("explain", "attention.rope.layuot", code=2).stderr
    for topic in ("DSC999", "1234", "zzz", "BRK999"):
        assert "`dsc explain` lists the codes" in run("explain", topic, code=2).stderr


def test_clusters_are_words_of_the_schema(run: Any) -> None:
    kind = json.loads(run("schema").stdout)["$defs"]["Machines"]["properties"]["kind"]
    words, files = kind["anyOf"]
    assert words["enum"] == names(CLUSTERS)
    assert re.search(files["pattern"], "./mine.yaml") and not re.search(files["pattern"], "h100")


def test_init_from_the_zoo(run: Any) -> None:
    run("init", "--from", "deepseek-v2", "mine.yaml")
    spec, origin = load("mine.yaml"), load("deepseek-v2")
    assert spec.name == "mine" and spec.model_copy(update={"name": origin.name}) == origin
    assert Path("mine.yaml").read_text().startswith("# yaml-language-server: $schema=")
    assert "lists it" in run("init", "--from", "h800", "other.yaml", code=2).stderr
    assert not Path("other.yaml").exists()


@pytest.mark.parametrize("name", ["tiny", "h800"])
def test_zoo_prints_a_file(run: Any, name: str) -> None:
    folder = MODELS if name in names(MODELS) else CLUSTERS
    assert run("zoo", name).stdout == (folder / f"{name}.yaml").read_text()
    assert "lists it" in run("zoo", f"{name}-2", code=2).stderr
    assert "NAME" in run("zoo", name, "--json", code=2).stderr


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
