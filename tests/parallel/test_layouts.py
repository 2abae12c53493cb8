"""A step on any layout is the step on one process: losses, gradient norms, held-out losses; selection biases bit by bit.

Real processes on gloo. In float64 nothing but rounding may be between them; a wrong factor has nowhere to hide.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit
from dsc.spec.model import ModelSpec

STEPS = Path(__file__).with_name("steps.py")
EP = {"dp": 2, "ep": 2}
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, pp 2 x dp 2 x ep 2, dualpipe-v": ("deepseek", {**V, "schedule": "dualpipe-v"}),
    "deepseek, dp 2 x ep 2, zero 3": ("deepseek", {**EP, "zero": 3}),
    "llama, pp 2, tied": ("llama", {"pp": 2}),
    "mixtral, pp 2 x dp 2 x ep 2, 1f1b": ("mixtral", {"pp": 2, **EP}),
    "window, dp 2, zero 2": ("window", {"dp": 2, "zero": 2}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, dp 2": ("deepseek", {"dp": 2}),
    "deepseek, dp 4 x ep 2": ("deepseek", {"dp": 4, "ep": 2}),
    "deepseek, dp 4 x ep 4, zero 2": ("deepseek", {"dp": 4, "ep": 4, "zero": 2}),
    "deepseek, pp 2": ("deepseek", {"pp": 2}),
    "deepseek, pp 4": ("deepseek", {"pp": 4}),
    "deepseek, pp 2, interleaved": ("deepseek", {"pp": 2, "vpp": 2, "schedule": "interleaved"}),
    "deepseek, pp 2 x dp 2 x ep 2, zbv": ("deepseek", {**V, "schedule": "zbv"}),
    "deepseek, pp 2 x dp 2, micro-batches of 2": ("deepseek", {"pp": 2, "dp": 2, "micro_batch": 2}),
    "llama, dp 4, zero 3": ("llama", {"dp": 4, "zero": 3}),
    "llama, pp 2 x dp 2, zbv": ("llama", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "zbv"}),
    "mixtral, dp 4 x ep 4": ("mixtral", {"dp": 4, "ep": 4}),
    "window, pp 2": ("window", {"pp": 2}),
    "window, pp 2 x dp 2, dualpipe-v": ("window", {"pp": 2, "vpp": 2, "dp": 2, "schedule": "dualpipe-v"}),
}


def compare(spec: dict[str, Any], folder: Path, dtype: str) -> dict[str, Any]:
    """What steps.py prints of the package of a spec."""
    model = ModelSpec.model_validate(spec)
    package = folder / model.package_name
    for name, text in emit(build(model)).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, str(STEPS), str(folder), model.package_name, dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def furthest(found: dict[str, Any]) -> float:
    """The largest relative difference between a rank's figures and those of one process."""
    pairs = (
        (mine, theirs)
        for rank in found["ranks"]
        for row, expected in zip(rank["rows"], found["one"]["rows"], strict=True)
        for mine, theirs in zip(row, expected, strict=True)
    )
    return max(abs(mine - theirs) / max(abs(theirs), 1e-12) for mine, theirs in pairs)


def check(found: dict[str, Any], bound: float) -> None:
    assert furthest(found) <= bound
    biases = found["one"]["biases"]
    held = {name: bias for rank in found["ranks"] for name, bias in rank["biases"].items()}
    assert held.keys() == biases.keys(), "every router is on some rank"
    for rank in found["ranks"]:
        assert all(bias == biases[name] for name, bias in rank["biases"].items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_one_process(layout: str, placed_spec: Any, tmp_path: Path) -> None:
    check(compare(placed_spec(*LAYOUTS[layout]), tmp_path, "float64"), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, placed_spec: Any, tmp_path: Path) -> None:
    check(compare(placed_spec(*MORE[layout]), tmp_path, "float64"), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_as_close_as_its_sums(layout: str, placed_spec: Any, tmp_path: Path) -> None:
    check(compare(placed_spec(*LAYOUTS[layout]), tmp_path, "float32"), 1e-4)
