"""Small models of several families, placed in several ways."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import build, emit
from dsc.spec.model import ModelSpec

STEPS = Path(__file__).with_name("steps.py")

MLA = {
    "kind": "mla",
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "rope": {"layout": "interleaved", "theta": 10000.0},
}
GQA = {
    "kind": "gqa",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope": {"layout": "half", "theta": 10000.0},
}
DEEPSEEK_ROUTER = {
    "score": "sigmoid",
    "selection_bias": True,
    "n_group": 4,
    "topk_group": 2,
    "group_score": "top2_sum",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "balance": {"bias_update_rate": 0.001, "sequence_aux_loss_alpha": 0.01},
}
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "deepseek": {
        "attention": MLA,
        "ffn": {
            "dense": {"intermediate_size": 128},
            "moe": {**EXPERTS, "n_shared_experts": 1, "router": DEEPSEEK_ROUTER},
        },
        "layers": [{"repeat": 1, "ffn": "dense"}, {"repeat": 4, "ffn": "moe"}],
        "mtp": {"depth": 1, "loss_weight": 0.3},
    },
    "llama": {
        "attention": {**GQA, "qkv_bias": True},
        "ffn": {"dense": {"intermediate_size": 128}},
        "layers": [{"repeat": 4, "ffn": "dense"}],
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "attention": GQA,
        "ffn": {"moe": {**EXPERTS, "router": {"score": "softmax", "norm_topk_prob": True}}},
        "layers": [{"repeat": 4, "ffn": "moe"}],
    },
    "window": {
        "attention": {"full": GQA, "sliding": {**GQA, "kind": "window", "window": 8}},
        "ffn": {"dense": {"intermediate_size": 128}},
        "layers": [
            {"repeat": 2, "cycle": [{"attention": "sliding", "ffn": "dense"}, {"attention": "full", "ffn": "dense"}]}
        ],
    },
}
APART = {"training": {"documents": "apart"}}
MODELS |= {f"{name}, documents": {**MODELS[name], **APART} for name in ("deepseek", "llama", "window")}
MODELS["deepseek, weighed"] = {
    **MODELS["deepseek"],
    "mtp": {"depth": 1, "loss_weight": 0.3, "later": {"after_tokens": 1024, "loss_weight": 0.1}},
}
PLACEMENT = {
    "pp": 1,
    "vpp": 1,
    "schedule": "1f1b",
    "dp": 1,
    "cp": 1,
    "tp": 1,
    "ep": 1,
    "etp": 1,
    "zero": 1,
    "micro_batch": 1,
    "recompute": [],
    "activations": "bf16",
}


def placed(model: str, placement: dict[str, Any], moments: str = "fp32") -> dict[str, Any]:
    """A spec, as plain values, on as many CPU ranks as its placement has."""
    ranks = math.prod(placement.get(name, 1) for name in ("pp", "dp", "cp", "tp"))
    return {
        "name": f"small-{model.rpartition(', ')[2]}",
        "vocab_size": 256,
        "hidden_size": 64,
        "max_position_embeddings": 256,
        "norm": {"eps": 1e-6},
        **MODELS[model],
        "precision": {"parameters": "fp32", "kv_cache": "fp32", "optimizer": {"moments": moments}},
        "workload": {"sequence_length": 32, "global_batch": 16},
        "cluster": {"kind": "cpu", "nodes": ranks},
        "placement": {**PLACEMENT, **placement},
    }


@pytest.fixture(scope="session")
def placed_spec() -> Any:
    return placed


def placed_in_fp8(placement: dict[str, Any], width: int = 128) -> dict[str, Any]:
    """The deepseek model with two blocks of FP8 along most dims, for GPUs that have it; a CPU runs the references."""
    found = placed("deepseek", placement)
    attention = {**found["attention"], "q_lora_rank": 128, "kv_lora_rank": 64}
    moe = {**found["ffn"]["moe"], "moe_intermediate_size": width}
    ffn = {"dense": {"intermediate_size": 128}, "moe": moe}
    precision = {"linear": {"kind": "fp8_block"}}
    ranks = found["cluster"]["nodes"]
    layers = [{"repeat": 1, "ffn": kind} for kind in ffn]
    changed = {"hidden_size": 128, "attention": attention, "ffn": ffn, "precision": precision, "layers": layers}
    return {**found, **changed, "cluster": {"kind": "h100", "gpus": ranks}}


@pytest.fixture(scope="session")
def fp8_spec() -> Any:
    return placed_in_fp8


def write_package(spec: dict[str, Any], folder: Path, change: Callable[[str, str], str] | None = None) -> str:
    """Emits a spec into a folder, each file changed by a function; the package's name."""
    model = ModelSpec.model_validate(spec)
    for name, text in emit(build(model)).items():
        path = folder / model.package_name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(name, text) if change else text)
    return model.package_name


def run(*command: str, folder: Path, fails: bool = False) -> str:
    """A command in a folder, on one thread; its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, check=False, timeout=900
    )
    assert (result.returncode != 0) == fails, result.stderr[-4000:]
    return result.stderr if fails else result.stdout


def take_steps(
    spec: dict[str, Any], folder: Path, dtype: str, change: Callable[[str, str], str] | None = None
) -> dict[str, Any]:
    """What steps.py prints of a spec, its files changed by a function: figures of one process, and of every rank."""
    package = write_package(spec, folder, change)
    out = run(sys.executable, str(STEPS), str(folder), package, dtype, folder=folder)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def stepped() -> Any:
    return take_steps


def compare(
    spec: dict[str, Any], folder: Path, dtype: str, change: Callable[[str, str], str] | None = None
) -> tuple[float, bool]:
    """The largest difference between a rank's figures and one process's, and whether biases are equal.

    Figures differ relatively, gradients by parts of their norms.
    """
    found = take_steps(spec, folder, dtype, change)
    biases = found["one"]["biases"]
    held = {name for rank in found["ranks"] for name in rank["biases"]}
    assert held == biases.keys(), "every router is on some rank"
    equal = all(bias == biases[name] for rank in found["ranks"] for name, bias in rank["biases"].items())
    assert {name for rank in found["ranks"] for name in rank["gradients"]} == found["one"]["gradients"].keys()
    return max(
        max(_furthest(rank["rows"], found["one"]["rows"]), _apart(rank, found["one"])) for rank in found["ranks"]
    ), equal


def _apart(rank: dict[str, Any], one: dict[str, Any]) -> float:
    """The largest difference between gradients of the first step."""
    pairs = ((found, one["gradients"][name]) for name, found in rank["gradients"].items())
    return max(max(abs(norm / expected - 1), abs(part - other)) for (norm, part), (expected, other) in pairs)


def _furthest(rows: list[list[float]], expected: list[list[float]]) -> float:
    pairs = ((a, b) for row, other in zip(rows, expected, strict=True) for a, b in zip(row, other, strict=True))
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


@pytest.fixture(scope="session")
def compared() -> Any:
    return compare


@pytest.fixture
def same_steps(tmp_path: Path) -> Callable[..., None]:
    """Asserts that a spec's ranks take the steps of one process: figures within a bound, biases bit by bit."""

    def check(spec: dict[str, Any], dtype: str = "float64", within: float = 1e-13) -> None:
        difference, equal_biases = compare(spec, tmp_path, dtype)
        assert difference <= within and equal_biases

    return check


@pytest.fixture(scope="session")
def package_of() -> Any:
    return write_package


@pytest.fixture(scope="session")
def run_in() -> Any:
    return run


def change(file: str, text: str, fault: str) -> Callable[[str, str], str]:
    """Of a package's files one, in which a fault stands for a text."""

    def plant(name: str, source: str) -> str:
        if name != file:
            return source
        assert source.count(text) >= 1, f"{file} has no {text!r}"
        return source.replace(text, fault)

    return plant


@pytest.fixture(scope="session")
def planted() -> Any:
    return change
