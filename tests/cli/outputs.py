"""What every verb prints, in a terminal of 80 columns and into a pipe. `make goldens` writes tests/cli/golden anew."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, chdir
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

from dsc.compiler.cli import main
from dsc.compiler.cli.group import VERBS
from dsc.compiler.verify.verify import Check

GOLDEN = Path(__file__).resolve().parent / "golden"
ERRORS = Path(__file__).resolve().parents[1] / "errors"

# dumb: no colours, no moving cursor.
TERMINAL = {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}

# In a folder that holds what `_prepare` puts there. What has no name here prints JSON, a spec or a script in full.
COMMANDS = {
    "dsc": "--help",
    **{f"help-{verb}": f"{verb} --help" for verb in VERBS},
    "bench-no-package": "bench .",
    "breaking": "breaking small.yaml broken.yaml",
    "breaking-github": "breaking small.yaml broken.yaml --format github --only meaning",
    "breaking-nothing": "breaking small.yaml small.yaml",
    "check": "check tiny small.yaml",
    "check-a100": "check a100.yaml",
    "check-bad": "check bad.yaml tiny",
    "compile": "compile small.yaml",
    "compile-a100": "compile a100.yaml",
    "compile-check": "compile wider.yaml -o package --check",
    "compile-clash": "compile wider.yaml -o edited",
    "compile-edited": "compile small.yaml -o edited",
    "compile-no-original": "compile tiny -o edited/infer",
    "compile-project": "compile",
    "completion-of-no-shell": "completion tcsh",
    "diff": "diff small.yaml wider.yaml",
    "diff-breaking": "diff small.yaml broken.yaml --breaking",
    "diff-files": "diff small.yaml wider.yaml --files",
    "diff-plans": "diff one-node.yaml two-nodes.yaml",
    "diff-same": "diff tiny tiny",
    "doctor": "doctor",
    "explain": "explain DSC020",
    "explain-all": "explain",
    "explain-key": "explain attention.rope.layout",
    "explain-rule": "explain BRK103",
    "export-no-type": "export no-type.yaml",
    "import": "import config.json",
    "init": "init mine.yaml",
    "init-from": "init --from tiny mine.yaml",
    "init-again": "init small.yaml",
    "plan": "plan llama-3.1-8b --cluster h100 --nodes 1",
    "plan-a100": "plan a100.yaml",
    "plan-decode": "plan deepseek-v2-lite --mode decode --cluster h800 --nodes 1",
    "plan-explain": "plan tiny --cluster cpu --nodes 4 --explain recompute",
    "plan-torchtitan": "plan qwen3-30b-a3b --cluster h100 --nodes 2 --for torchtitan",
    "plan-megatron": "plan qwen3-30b-a3b --cluster h100 --nodes 2 --for megatron",
    "plan-nowhere": "plan tiny",
    "plan-serve": "plan deepseek-v2-lite --mode serve --answer 512 --cluster h800 --nodes 2",
    "plan-too-large": "plan llama-3.1-70b --cluster h100 --nodes 1",
    "shrink": "shrink tiny",
    "stats": "stats tiny",
    "stats-compare": "stats deepseek-v3 --compare llama-3.1-405b",
    "verb-unknown": "compil tiny",
    "verify": "verify tiny",
    "zoo": "zoo",
}

PROJECT = """packages:
  - {spec: small.yaml, output: src/small}
  - {spec: wider.yaml, output: package}
"""

# Instead of what differs from machine to machine.
CHECKS = [
    Check("parameters of the graph and of the model", 0, 0, None),
    Check("logits of two runs", 0.0, 1.5e-7, None),
    Check("decode against forward", 1e-5, None, "ZeroDivisionError: division by zero"),
]
MACHINE = {
    "platform.python_version": lambda: "3.12.0",
    "platform.platform": lambda: "Linux-6.18-x86_64",
    "dsc.compiler.cli.environment.version_of": lambda name: None if name == "triton" else "1.2.3",
    "dsc.compiler.cli.environment.pinned": lambda name: "1.2.4",
    "dsc.compiler.cli.environment._gpus": lambda: ["NVIDIA H100 80GB HBM3, 81559 MiB, 9.0"],
    "sys.executable": "venv/bin/python",
    "dsc.compiler.verify.verify.verify": lambda spec: CHECKS,
    "dsc.compiler.verify.verify.missing_libraries": lambda: [],
}


def outputs() -> dict[str, str]:
    """The text of each golden file by its name."""
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        return {f"{name}.txt": _shown(command, Path(folder)) for name, command in COMMANDS.items()}


def accept() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    for name, text in outputs().items():
        (GOLDEN / name).write_text(text, encoding="utf-8", newline="\n")


def _prepare(folder: Path) -> None:
    """The files that the commands name."""
    with chdir(folder):
        _run("shrink deepseek-v3 -o small.yaml")
        small = Path("small.yaml").read_text(encoding="utf-8")
        Path("wider.yaml").write_text(small, encoding="utf-8")
        _run("compile wider.yaml -o package")
        Path("wider.yaml").write_text(small.replace("hidden_size: 64", "hidden_size: 72"), encoding="utf-8")
        broken = small.replace("layout: interleaved", "layout: half").replace("kv_lora_rank: 24", "kv_lora_rank: 32")
        Path("broken.yaml").write_text(broken, encoding="utf-8")
        a100 = small.replace("cluster: null", "cluster: {kind: a100, gpus: 1}")  # which has no FP8
        Path("a100.yaml").write_text(a100, encoding="utf-8")
        no_type = small.replace("score: sigmoid", "score: softmax")
        Path("no-type.yaml").write_text(no_type, encoding="utf-8")
        shutil.copy(ERRORS / "DSC020-beside-the-schema" / "spec.yaml", "bad.yaml")
        _run("export small.yaml -o config.json")
        _run("compile small.yaml -o edited")
        for name in ("model.py", "dims.py"):
            text = Path("edited", name).read_text(encoding="utf-8")
            text = text.replace("HIDDEN_SIZE = 64  # hidden_size", "HIDDEN_SIZE = 96  # mine")
            Path("edited", name).write_text(f"{text}# mine\n", encoding="utf-8")
        Path("dsc.yaml").write_text(PROJECT, encoding="utf-8")
        _run("plan tiny --cluster cpu -o one-node.yaml")
        _run("plan tiny --cluster cpu --nodes 2 -o two-nodes.yaml")


def _run(command: str) -> None:
    assert CliRunner().invoke(main, command.split()).exit_code == 0, command


def _shown(command: str, folder: Path) -> str:
    """In a terminal, and into a pipe where that differs."""
    narrow, piped = (_printed(command, folder, environment) for environment in (TERMINAL, {}))
    return f"$ dsc {command}\n{narrow}" + ("" if narrow == piped else f"\n$ dsc {command} | cat\n{piped}")


def _printed(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        stack.enter_context(chdir(shutil.copytree(folder, Path(place) / "here")))
        stack.enter_context(patch.dict(os.environ, clean | environment, clear=True))
        for target, value in MACHINE.items():
            stack.enter_context(patch(target, value))
        result = CliRunner().invoke(main, command.split(), prog_name="dsc")
    errors = f"--- standard error\n{result.stderr}" if result.stderr else ""
    return f"{result.stdout}{errors}--- exit code {result.exit_code}\n"
