"""dsc verify: passes on what we emit, and fails on emitted code that was broken on purpose."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.verify import runner, verify
from dsc.spec.loader import load
from dsc.spec.shrink import shrunk
from dsc.spec.zoo import MODELS, names

CHECKS = {
    "parameters at full size",
    "parameters, shrunk",
    "parameters without a finite gradient",
    "gradients against finite differences",
    "decoding with the cache against the full forward",
    "tensors changed by save_hf and load_hf",
    "files that differ under other hash seeds",
}


def assert_passes(facts: Any, name: str) -> None:
    report = facts("verify", name)
    assert report["name"] == name and report["passed"]
    assert {check["name"] for check in report["checks"]} == CHECKS
    assert all({"measured", "bound", "error", "passed"} < check.keys() for check in report["checks"])


@pytest.mark.parametrize("name", ["deepseek-v3", "minicpm3-4b"])
def test_passes(facts: Any, name: str) -> None:
    assert_passes(facts, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(MODELS))
def test_zoo_passes(facts: Any, name: str) -> None:
    assert_passes(facts, name)


EDITS = [
    ("dims.py", "Q_LORA_RANK = 48 ", "Q_LORA_RANK = 47 ", "parameters, shrunk"),
    ("model.py", "out = out + shared", "out = out + shared.detach()", "parameters without a finite gradient"),
    ("model.py", "F.silu(gate) * up", "F.silu(gate) * up.detach()", "gradients against finite differences"),
    ("infer/decode.py", "k_rope = rotate(k_rope, rope)", "", "decoding with the cache against the full forward"),
    ("checkpoint.py", "target.copy_(read_tensor(files, name))", "pass", "tensors changed by save_hf and load_hf"),
]


@pytest.mark.parametrize(("file", "old", "new", "expected"), EDITS)
def test_broken_code_fails(
    file: str,
    old: str,
    new: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which need not import torch anew for each edit."""
    program = build(shrunk(load("deepseek-v3")))
    files = emit(program)
    assert old in files[file]
    name = f"{tmp_path.name}_package"  # another one for each edit: modules are imported once
    write({**files, file: files[file].replace(old, new)}, tmp_path / name)
    shapes = {key: [dim.value() for dim in p.type.shape] for key, p in program.training.parameters().items()}
    (tmp_path / "expected.json").write_text(json.dumps({"full": shapes, "small": shapes}))
    monkeypatch.setattr(sys, "path", [*sys.path])
    runner.main(str(tmp_path), name, name, str(tmp_path / "expected.json"))
    checks = [verify.Check(**one) for one in json.loads(capsys.readouterr().out)]
    assert expected in {check.name for check in checks if not check.passed}
    assert sum(check.passed for check in checks) >= 3, "the others are measured all the same"


def test_code_that_raises_fails(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    emit = verify.emit
    monkeypatch.setattr(verify, "emit", lambda program: {**emit(program), "model.py": "1 / 0\n"})
    result = run("verify", "tiny", code=1)
    assert "ZeroDivisionError: division by zero" in result.stdout and "FAILED" in result.stdout


def test_without_torch_it_says_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("verify", "tiny", code=2)
    assert "torch and safetensors" in result.stderr and "pip install 'dsc-compiler[run]'" in result.stderr


def test_the_runner_imports_nothing_of_dsc() -> None:
    assert "import dsc" not in Path(verify.RUNNER).read_text() and "from dsc" not in Path(verify.RUNNER).read_text()
