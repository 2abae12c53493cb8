"""dsc verify: passes on what we emit, and fails on emitted code that was broken on purpose."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler import verify
from dsc.compiler.shrink import shrunk
from dsc.spec.loader import load

CHECKS = {
    "parameters at full size",
    "parameters, shrunk",
    "parameters without a finite gradient",
    "gradients against finite differences",
    "decoding with the cache against the full forward",
    "tensors changed by save_hf and load_hf",
    "files that differ under other hash seeds",
}


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-30b-a3b", "minicpm3-4b"])
def test_passes(facts: Any, name: str) -> None:
    report = facts("verify", name)
    assert report["name"] == name and report["passed"]
    assert {check["name"] for check in report["checks"]} == CHECKS
    assert all({"measured", "bound", "error", "passed"} < check.keys() for check in report["checks"])


def failing(edit: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The checks that fail once a text in a file of the emitted packages is replaced."""
    file, old, new = edit
    emit = verify.emit

    def broken(*arguments: Any) -> dict[str, str]:
        files = emit(*arguments)
        assert old in files[file]
        return {**files, file: files[file].replace(old, new)}

    monkeypatch.setattr(verify, "emit", broken)
    found = verify.verify(shrunk(load("deepseek-v3")))
    return {check.name for check in found if not check.passed} - {"files that differ under other hash seeds"}


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (("model.py", "Q_LORA_RANK = 48 ", "Q_LORA_RANK = 47 "), "parameters, shrunk"),
        (("model.py", "return out + shared", "return out"), "parameters without a finite gradient"),
        (("model.py", "F.silu(gate) * up", "F.silu(gate) * up.detach()"), "gradients against finite differences"),
        (
            ("infer/decode.py", "F.silu(gate) * up", "F.silu(gate) * up * 1.001"),
            "decoding with the cache against the full forward",
        ),
        (("checkpoint.py", "targets[name].copy_(tensor)", "pass"), "tensors changed by save_hf and load_hf"),
    ],
)
def test_broken_code_fails(edit: tuple[str, str, str], check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check in failing(edit, monkeypatch)


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
