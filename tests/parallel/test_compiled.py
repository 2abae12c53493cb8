"""Layers by torch.compile on ranks: the step is that of one process, which compiles nothing."""

from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit
from dsc.spec.model import ModelSpec

pytestmark = pytest.mark.slow

LEFT_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "a pipeline": ("llama", {"pp": 2}),
    "experts of other ranks": ("mixtral", {"dp": 2, "ep": 2}),
    "a plan of what to recompute": ("llama", {"dp": 2, "recompute": ["norms"]}),
}


def test_a_step_is_that_of_one_process(
    placed_spec: Any, compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPILED", "aot_eager")
    difference, equal_biases = compared(placed_spec("llama", {"dp": 2, "zero": 3}), tmp_path, "float64")
    assert difference < 1e-12 and equal_biases


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_it_is_left_out_beside(reason: str, placed_spec: Any) -> None:
    files = emit(build(ModelSpec.model_validate(placed_spec(*LEFT_OUT[reason]))))
    assert "train/compiled.py" not in files and "--compile" not in files["train/train.py"]
