"""Does the emitted code do what the graph says? Shrinks a spec, emits both sizes, and runs them in another process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.graph.graph import Graph
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk

NEEDED = ("torch", "safetensors")
RUNNER = Path(__file__).parent / "runner.py"
HASH_SEEDS = ("1", "2")

# What another process emits from a spec's JSON on standard input, as JSON.
EMIT_AGAIN = """
import json, sys
from dsc.compiler.driver import build, emit
from dsc.spec.model import ModelSpec
print(json.dumps(emit(build(ModelSpec.model_validate_json(sys.stdin.read())))))
"""


@dataclass(frozen=True)
class Check:
    name: str
    bound: float
    """The largest figure that passes."""
    measured: float | None
    error: str | None
    """What was raised, where nothing could be measured."""

    @property
    def passed(self) -> bool:
        return self.measured is not None and self.measured <= self.bound  # NaN does not


def missing_libraries() -> list[str]:
    """What emitted packages need to run and this Python does not have."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def verify(spec: ModelSpec) -> list[Check]:
    small = shrunk(spec)
    full_program, small_program = build(spec), build(small)
    files = emit(full_program)
    with tempfile.TemporaryDirectory(prefix="dsc-verify-") as name:
        folder = Path(name)
        write(files, folder / spec.package_name)
        write(emit(small_program), folder / small.package_name)
        expected = {"full": _shapes(full_program.training), "small": _shapes(small_program.training)}
        (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
        ran = _run(folder, spec.package_name, small.package_name)
    return [*ran, _determinism(spec, files)]


def _shapes(graph: Graph) -> dict[str, list[int]]:
    return {name: [dim.value() for dim in p.type.shape] for name, p in graph.parameters().items()}


def _run(folder: Path, full: str, small: str) -> list[Check]:
    """-P: our own modules must not hide libraries from the runner."""
    command = [sys.executable, "-P", str(RUNNER), str(folder), full, small, str(folder / "expected.json")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        return [Check("the emitted packages run", 0, None, last)]
    return [Check(**fields) for fields in json.loads(finished.stdout.splitlines()[-1])]


def _determinism(spec: ModelSpec, files: Mapping[str, str]) -> Check:
    """Files that another process, with another hash seed, emits differently."""
    name = "files that differ under other hash seeds"
    differing: set[str] = set()
    for seed in HASH_SEEDS:
        again = subprocess.run(
            [sys.executable, "-c", EMIT_AGAIN],
            input=spec.model_dump_json(exclude_unset=True),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        if again.returncode != 0:
            return Check(name, 0, None, (again.stderr.strip().splitlines() or ["no output"])[-1])
        emitted: dict[str, str] = json.loads(again.stdout)
        differing |= {path for path in {*files, *emitted} if files.get(path) != emitted.get(path)}
    return Check(name, 0, len(differing), None)
