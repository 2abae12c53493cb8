"""What is emitted for several ranks has right types, and the linter and the formatter find nothing in it."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUFF = (sys.executable, "-m", "ruff")
SETTINGS = ("--isolated", "--no-cache", "--line-length=120", "--target-version=py311")
V = {"pp": 2, "vpp": 2, "dp": 2, "ep": 2}
PLACEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pipeline, experts, recompute": (
        "deepseek",
        {**V, "schedule": "zbv", "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "data parallel, full": ("mixtral", {"dp": 2, "zero": 3, "recompute": ["full"]}),
    "two hops, in turns": ("deepseek", {"pp": 2, "vpp": 2, "dp": 8, "ep": 8, "schedule": "dualpipe-v"}),
    "sequences, pipeline, experts, recompute": (
        "deepseek",
        {
            **{"cp": 2, "pp": 2, "vpp": 2, "ep": 2, "schedule": "zbv"},
            "recompute": ["experts", "mla_up_proj", "norms", "swiglu"],
        },
    ),
    "sequences, in turns": ("deepseek", {**V, "cp": 2, "schedule": "dualpipe-v"}),
    "sequences": ("window", {"cp": 2, "zero": 1}),
    "heads, experts, pipeline, in turns": ("deepseek", {**V, "tp": 2, "schedule": "dualpipe-v"}),
    "heads, experts, recompute": (
        "deepseek",
        {"tp": 2, "ep": 2, "recompute": ["experts", "mla_up_proj", "norms", "swiglu"]},
    ),
    "heads, full": ("mixtral", {"tp": 2, "dp": 2, "zero": 3, "recompute": ["full"]}),
    "heads, kernels": ("deepseek", {"tp": 2, "dp": 4, "ep": 4}),
    "heads": ("llama", {"tp": 2, "pp": 2}),
    "sequences, heads": ("llama", {"cp": 2, "tp": 2}),
    "sequences, heads, widths of experts, in turns": (
        "deepseek",
        {**{"pp": 2, "vpp": 2, "cp": 2, "tp": 2, "ep": 2, "etp": 2}, "schedule": "dualpipe-v"},
    ),
    "experts, kernels": ("deepseek", {"dp": 8, "ep": 8}),
    "DeepEP, kernels": ("deepseek", {"dp": 8, "ep": 8, "dispatch": "deepep"}),
    "DeepEP, sequences, heads, kernels": ("mixtral", {"cp": 2, "tp": 2, "dp": 2, "ep": 8, "dispatch": "deepep"}),
    "widths of experts": ("mixtral", {"dp": 2, "etp": 2}),
    "heads, widths of experts, two hops, in turns": (
        "deepseek",
        {"pp": 2, "vpp": 2, "tp": 2, "dp": 4, "ep": 4, "etp": 2, "schedule": "dualpipe-v"},
    ),
    "answers, widths of experts": ("mixtral", {"dp": 4, "ep": 2, "etp": 2}),
    "documents, in turns": ("deepseek, documents", {**V, "schedule": "dualpipe-v"}),
    "documents, sequences, in turns": ("deepseek, documents", {**V, "cp": 2, "schedule": "dualpipe-v"}),
    "documents, heads, sequences": ("window, documents", {"tp": 2, "cp": 2}),
    "documents, heads, kernels": ("llama, documents", {"tp": 2, "dp": 4}),
    "documents, kernels": ("deepseek, documents", {"dp": 8, "ep": 8}),
    "pipeline": ("llama", {"pp": 2, "recompute": ["norms"]}),
    "answers, experts": ("deepseek", {"dp": 4, "ep": 2}),
    "answers, sequences, experts": ("deepseek", {"cp": 2, "ep": 2}),
    "answers, sequences": ("window", {"cp": 2}),
    "answers, kernels": ("llama", {"dp": 8, "zero": 2}),
    "pipeline, weights shared, experts": ("mixtral", {"pp": 2, "dp": 2, "ep": 2, "zero": 3}),
    "pipeline, gradients shared": ("llama", {"pp": 2, "dp": 2, "zero": 2}),
    "backward split, weights shared": ("llama", {**V, "ep": 1, "schedule": "zbv", "zero": 3}),
    "backward split, gradients shared": ("deepseek", {**V, "schedule": "zbv", "zero": 2, "recompute": ["norms"]}),
    "in turns, weights shared": ("deepseek", {**V, "schedule": "dualpipe-v", "zero": 3}),
    "two hops, in turns, gradients shared": (
        "deepseek",
        {"pp": 2, "vpp": 2, "dp": 8, "ep": 8, "schedule": "dualpipe-v", "zero": 2},
    ),
    "answers, pipeline": ("mixtral", {"pp": 2, "dp": 2, "ep": 2}),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_types_lint_and_format(placement: str, placed_spec: Any, package_of: Any, run_in: Any, tmp_path: Path) -> None:
    spec = placed_spec(*PLACEMENTS[placement])
    if "kernels" in placement:
        spec |= {"cluster": {"kind": "h100", "nodes": 1}, "precision": {"parameters": "bf16"}}
    if "DeepEP" in placement:
        spec |= {"hidden_size": 256}
    if "answers" in placement:
        spec |= {"rl": {"max_new_tokens": 8, "router_replay": "experts" in placement}, "tokens": {"eos": 255}}
    package = package_of({**spec, "workload": {"sequence_length": 32, "global_batch": 64}}, tmp_path)
    assert (tmp_path / package / "train/parallel.py").exists(), "the layout is emitted"
    assert (tmp_path / package / "train/turns.py").exists() == ("in turns" in placement)
    assert (tmp_path / package / "train/tensor.py").exists() == ("heads" in placement)
    run_in(*RUFF, "check", *SETTINGS, "--select=E,F,W,I,B,UP,C4,SIM", "--ignore=SIM108", ".", folder=tmp_path)
    run_in(*RUFF, "format", *SETTINGS, "--check", ".", folder=tmp_path)
    config = f"--config-file={ROOT / 'tests' / 'golden' / 'mypy.ini'}"
    run_in(sys.executable, "-m", "mypy", config, "--package", package, folder=tmp_path)
