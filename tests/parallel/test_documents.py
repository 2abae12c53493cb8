"""Ranks that share rows of several documents, as contexts or between heads, take the step of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build
from dsc.spec.model import ModelSpec

Compared = Callable[..., tuple[float, bool]]
SameSteps = Callable[..., None]
DEEPSEEK, WINDOW, LLAMA = (f"{name}, documents" for name in ("deepseek", "window", "llama"))
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {"window, tp 2 x cp 2": (WINDOW, {"tp": 2, "cp": 2})}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek, cp 2 x ep 2": (DEEPSEEK, {"cp": 2, "ep": 2}),
    "deepseek, cp 2": (DEEPSEEK, {"cp": 2}),
    "deepseek, cp 4, micro-batches of 2": (DEEPSEEK, {"cp": 4, "micro_batch": 2}),
    "deepseek, tp 2": (DEEPSEEK, {"tp": 2}),
    "deepseek, tp 2 x ep 2, zero 3, recompute": (
        DEEPSEEK,
        {"tp": 2, "dp": 2, "ep": 2, "zero": 3, "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "deepseek, tp 2 x cp 2, full": (DEEPSEEK, {"tp": 2, "cp": 2, "recompute": ["full"]}),
    "deepseek, pp 2 x cp 2": (DEEPSEEK, {"pp": 2, "cp": 2}),
    "deepseek, pp 2 x cp 2 x ep 2, dualpipe-v": (
        DEEPSEEK,
        {"pp": 2, "vpp": 2, "cp": 2, "ep": 2, "schedule": "dualpipe-v"},
    ),
    "deepseek, pp 2 x tp 2 x ep 2, dualpipe-v": (
        DEEPSEEK,
        {"pp": 2, "vpp": 2, "tp": 2, "ep": 2, "schedule": "dualpipe-v"},
    ),
    "llama, cp 2 x dp 2, tied": (LLAMA, {"cp": 2, "dp": 2}),
    "llama, tp 2, tied": (LLAMA, {"tp": 2}),
    "window, cp 2": (WINDOW, {"cp": 2}),
    "window, tp 2, micro-batches of 4": (WINDOW, {"tp": 2, "micro_batch": 4}),
    "window, pp 2 x cp 2, zbv": (WINDOW, {"pp": 2, "vpp": 2, "cp": 2, "schedule": "zbv"}),
}
WITH_KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tp 2": (LLAMA, {"tp": 2, "micro_batch": 4}),
    "deepseek, tp 2": (DEEPSEEK, {"tp": 2, "micro_batch": 4}),
    "llama, cp 2": (LLAMA, {"cp": 2, "micro_batch": 4}),
}
"""As GPUs run it: a CPU runs the kernels' references."""
STARTS, OWN = "starts = document_starts(documents)", "        x = self.embed_tokens(own_tokens)"
SAME = ".where(documents[:, 1:] == documents[:, :-1], -100), (0, 1)"
FAULTS: dict[str, tuple[str, dict[str, Any], tuple[str, str, str]]] = {
    "documents are joined": (
        DEEPSEEK,
        {"cp": 2, "micro_batch": 4},
        ("train/stages.py", f"{STARTS}\n{OWN}", f"starts = document_starts(documents * 0)\n{OWN}"),
    ),
    "a document begins where its part does": (
        DEEPSEEK,
        {"cp": 2, "micro_batch": 4},
        (
            "train/stages.py",
            f"{STARTS}\n{OWN}",
            f"starts = document_starts(own_part(documents, self.rank)).repeat(1, 2)\n{OWN}",
        ),
    ),
    "a document's start is read at the front": (
        DEEPSEEK,
        {"cp": 2, "micro_batch": 4},
        ("train/context.py", "starts[:, end - chunk : end]", "starts[:, :chunk]"),
    ),
    "tokens ahead are of another document": (
        DEEPSEEK,
        {"cp": 2, "micro_batch": 4},
        ("train/stages.py", f"F.pad(labels[:, 1:]{SAME}", "F.pad(labels[:, 1:], (0, 1)"),
    ),
    "a window ends with its document alone": (
        WINDOW,
        {"cp": 2, "micro_batch": 4},
        ("train/context.py", ".triu(seen - new - SLIDING_WINDOW + 1)", ""),
    ),
    "heads see all documents": (
        DEEPSEEK,
        {"tp": 2, "micro_batch": 4},
        ("train/tensor.py", "visible_in_document(starts)", "visible_in_document(starts * 0)"),
    ),
    "documents of a part of a row are those of another": (
        WINDOW,
        {"tp": 2, "cp": 2, "micro_batch": 4},
        ("train/tensor.py", "starts[:, end - chunk : end]", "starts[:, -chunk:]"),
    ),
    "tokens ahead of a part are of another document": (
        DEEPSEEK,
        {"tp": 2, "micro_batch": 4},
        ("train/stages.py", f"F.pad(labels[:, 1:]{SAME}", "F.pad(labels[:, 1:], (0, 1)"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_one_process(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*LAYOUTS[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, placed_spec: Any, same_steps: SameSteps) -> None:
    same_steps(placed_spec(*MORE[layout]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", WITH_KERNELS)
def test_so_it_is_with_kernels(layout: str, placed_spec: Any, same_steps: SameSteps, tmp_path: Path) -> None:
    """Attention of a part of a row is PyTorch's, and said to be; of heads it is the kernel's."""
    model, placement = WITH_KERNELS[layout]
    spec = {**placed_spec(model, placement), "cluster": {"kind": "h100", "gpus": 2}}
    said = [note for note in build(ModelSpec.model_validate(spec)).notes if "PyTorch's attention instead of" in note]
    same_steps(spec)
    shares = (tmp_path / "small_documents" / "train" / f"{'tensor' if 'tp' in placement else 'context'}.py").read_text()
    assert bool(said) == ("cp" in placement) == ("_attention import document_attention" not in shares)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, placed_spec: Any, compared: Compared, planted: Any, tmp_path: Path
) -> None:
    model, placement, change = FAULTS[fault]
    difference, equal_biases = compared(placed_spec(model, placement), tmp_path, "float64", planted(*change))
    assert difference > 1e-6 or not equal_biases
