"""What test_layouts.py compares can differ: faults planted in emitted code are caught."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAULTS: dict[str, tuple[str, str, str]] = {
    "gradients are averaged over dp": (
        "train/parallel.py",
        "module.set_gradient_divide_factor(1.0)",
        "module.set_gradient_divide_factor(2.0)",
    ),
    "the embedding's copies are not summed": (
        "train/parallel.py",
        "        self.sum_tied_gradients()\n",
        "",
    ),
    "the copy counts in the norm": (
        "train/parallel.py",
        "for index in READERS[1:]:",
        "for index in ():",
    ),
    "the norm leaves out other ranks' experts": (
        "train/parallel.py",
        'dist.all_reduce(squares[1:], group=self.expert_mesh.get_group("ep"))',
        "pass",
    ),
    "labels are counted on each rank alone": (
        "train/parallel.py",
        "        dist.all_reduce(counts, group=self.dp)\n",
        "",
    ),
    "the balance loss is not a share": (
        "train/stages.py",
        "balance_loss / counts[0, -1]",
        "balance_loss / 1",
    ),
    "loads are not summed": (
        "train/parallel.py",
        "            dist.all_reduce(router.expert_load, group=self.dp)\n",
        "",
    ),
    "rows come back to the wrong tokens": (
        "train/experts.py",
        "torch.empty_like(h).index_copy(0, by_expert, h)",
        "h.index_select(0, by_expert)",
    ),
    "ranks draw the first experts' weights": (
        "train/parallel.py",
        "draw(name, weight.to_local(), seed, first_row, first_expert)",
        "draw(name, weight.to_local(), seed, first_row, 0)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, placed_spec: Any, compared: Callable[..., Any], tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        if name != file:
            return source
        assert source.count(text) >= 1, f"{file} has no {text!r}"
        return source.replace(text, planted)

    spec = placed_spec("deepseek", {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "schedule": "dualpipe-v"})
    difference, equal_biases = compared(spec, tmp_path, "float64", plant)
    assert difference > 1e-6 or not equal_biases
