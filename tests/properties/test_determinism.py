"""The same spec gives the same bytes: on any hash seed, in any folder and locale, however the YAML is written."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsc.compiler.driver import build, compile_spec, emit
from dsc.compiler.emit.command import regenerate
from dsc.spec.loader import load, loads
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import MODELS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, json, sys
import dsc.compiler.driver
spec, files = dsc.compiler.driver.compile_spec(sys.argv[1])
print(json.dumps([dsc.compiler.driver.__file__, hashlib.sha256(json.dumps(files).encode()).hexdigest()]))
"""


def digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def elsewhere(source: str, cwd: Path = ROOT, **environment: str) -> tuple[str, str]:
    """Where the compiler of another process lies, and the digest of what it emits."""
    command = [sys.executable, "-P", "-c", PROGRAM, source]
    run = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    file, files = json.loads(run.stdout)
    return file, files


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(compile_spec("tiny")[1])


ENVIRONMENTS = {
    "hash seed 0": {"PYTHONHASHSEED": "0"},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 4242": {"PYTHONHASHSEED": "4242"},
    "C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "another time zone": {"TZ": "Asia/Kathmandu"},
    "no colour, narrow terminal": {"NO_COLOR": "1", "COLUMNS": "20"},
    "optimised": {"PYTHONOPTIMIZE": "2"},
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_environment_has_no_say(expected: str, environment: str) -> None:
    assert elsewhere("tiny", **ENVIRONMENTS[environment])[1] == expected


def test_the_folder_has_no_say_even_with_ruff_settings_in_it(expected: str, tmp_path: Path) -> None:
    (tmp_path / "ruff.toml").write_text('line-length = 60\nindent-width = 2\n[format]\nquote-style = "single"\n')
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 60\n")
    assert elsewhere("tiny", cwd=tmp_path)[1] == expected


def test_the_path_of_the_spec_stands_in_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compile_spec("tiny")[1]
    (tmp_path / "another name.yaml").write_text((MODELS / "tiny.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for path in ("another name.yaml", "./another name.yaml", tmp_path / "another name.yaml"):
        files = compile_spec(path)[1]
        named = {name: text.replace("compile 'another name.yaml'\n", "compile tiny\n") for name, text in files.items()}
        assert {name for name in files if named[name] != expected[name]} == {"dsc.lock.json"}


COMMANDS = {
    "beside the package": ("a.yaml", "package", "a.yaml"),
    "in a folder": ("./specs/a.yaml", "package", "specs/a.yaml"),
    "in a folder beside that of the package": ("specs/a.yaml", "generated/package", "../specs/a.yaml"),
    "an absolute path": ("/absolute/specs/a.yaml", "package", "a.yaml"),
    "an absolute folder": ("specs/a.yaml", "/absolute/package", "a.yaml"),
    "a model of the zoo": ("tiny", "package", "tiny"),
    "a name that would end the comment": ("a\nimport os", "package", "tiny"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_of_the_header(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, shown = COMMANDS[case]
    source, folder = (path.replace("/absolute", str(tmp_path)) for path in (source, folder))
    (tmp_path / "specs").mkdir()
    for name in ("a.yaml", "specs/a.yaml", "a\nimport os"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert regenerate(load("tiny"), source, folder) == f"dsc compile {shown}"


def shuffled(value: object, order: random.Random) -> object:
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["tiny", "llama-3.1-8b"])
def test_the_order_of_keys_has_no_say(name: str, seed: int) -> None:
    spec, files = compile_spec(name)
    text = json.dumps(shuffled(spec.model_dump(exclude_unset=True), random.Random(seed)))
    assert emit(build(loads(text, "shuffled"))) == files


def test_comments_and_spelled_out_defaults_have_no_say(expected: str) -> None:
    text = (MODELS / "tiny.yaml").read_text()
    commented = "\n".join(f"# a comment\n\n{line}  # and another" for line in text.splitlines())
    assert digest(emit(build(loads(commented, "commented")))) == expected
    assert digest(emit(build(loads(json.dumps(load("tiny").model_dump()), "in full")))) == expected


def test_two_compilations_in_one_process_do_not_touch_each_other(expected: str) -> None:
    first, other, again = build(load("tiny")), build(load("llama-3.1-8b")), build(load("tiny"))
    emit(other)
    assert digest(emit(again)) == digest(emit(first)) == expected


def test_every_lane_emits_the_same_without_torch(expected: str, tmp_path: Path) -> None:
    """The compiler never imports torch or triton, so their version cannot matter."""
    for library in ("torch", "triton"):
        (tmp_path / f"{library}.py").write_text("raise ImportError('the compiler imported a runtime library')\n")
    assert elsewhere("tiny", PYTHONPATH=str(tmp_path))[1] == expected


def test_an_installed_wheel_emits_what_the_checkout_emits(expected: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("dsc_compiler-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", f"--target={site}", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    file, installed = elsewhere("tiny", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(file).is_relative_to(site)
    assert installed == expected


def test_a_name_changes_nothing_but_the_name() -> None:
    """Two names of one length, so that no line breaks elsewhere; the lock hashes all that has changed."""
    spec = load("tiny")
    one, two = (emit(build(spec.model_copy(update={"name": name}))) for name in ("abcd-1", "wxyz-1"))
    renamed = {file: text.replace("abcd-1", "wxyz-1").replace("abcd_1", "wxyz_1") for file, text in one.items()}
    assert one.keys() == two.keys()
    assert {file for file in two if two[file] != renamed[file]} == {"dsc.lock.json"}


def test_a_different_model_is_different() -> None:
    """So that the digests above say something."""
    data = load("tiny").model_dump()
    data["attention"]["kv_lora_rank"] += 1
    assert digest(emit(build(ModelSpec.model_validate(data)))) != digest(compile_spec("tiny")[1])
