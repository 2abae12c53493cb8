"""Every model and cluster that ships is valid and says what its publication says."""

import json
from pathlib import Path

import pytest

from dsc.compiler.cli.zoo_figures import zoo_figures
from dsc.spec.cluster import Cluster
from dsc.spec.loader import load, load_section
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import CLUSTERS, FIGURES, MODELS, names

MODEL_NAMES = (
    "deepseek-r1",
    "deepseek-v2",
    "deepseek-v2-lite",
    "deepseek-v3",
    "kimi-k2",
    "llama-3.1-405b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "minicpm3-4b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "tiny",
    "tiny-r1",
    "tiny-window",
)
CLUSTER_NAMES = (
    *("a10", "a100", "b200", "cpu", "gb200", "gb300", "h100", "h200", "h800"),
    *("l4", "l40s", "mi300x", "mi350x", "rtx4090", "rtx5090", "rtxpro6000"),
)
FILES = sorted([*MODELS.glob("*.yaml"), *CLUSTERS.glob("*.yaml")])


def load_cluster(name: str) -> Cluster:
    file = CLUSTERS / f"{name}.yaml"
    return load_section(Cluster, file.read_bytes(), str(file), check=lambda cluster: [])


def test_the_zoo_is_complete() -> None:
    assert names(MODELS) == sorted(MODEL_NAMES)
    assert names(CLUSTERS) == sorted(CLUSTER_NAMES)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_models_load_under_their_file_name(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", CLUSTER_NAMES)
def test_clusters_load_under_their_file_name(name: str) -> None:
    assert load_cluster(name).name == name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_are_short_ascii_and_say_what_they_are(file: Path) -> None:
    lines = file.read_text("ascii").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 55
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.yaml")), ids=lambda file: file.stem)
def test_sections_stand_in_the_order_of_the_schema(file: Path) -> None:
    keys = [line.split(":")[0] for line in file.read_text("ascii").splitlines() if line[0].isalpha()]
    assert keys == [key for key in ModelSpec.model_fields if key in keys]


# layers, hidden size, query heads, vocabulary, context
SIZES = {
    "deepseek-r1": (61, 7168, 128, 129280, 163840),
    "deepseek-v2": (60, 5120, 128, 102400, 163840),
    "deepseek-v2-lite": (27, 2048, 16, 102400, 163840),
    "deepseek-v3": (61, 7168, 128, 129280, 163840),
    "kimi-k2": (61, 7168, 64, 163840, 131072),
    "llama-3.1-405b": (126, 16384, 128, 128256, 131072),
    "llama-3.1-70b": (80, 8192, 64, 128256, 131072),
    "llama-3.1-8b": (32, 4096, 32, 128256, 131072),
    "minicpm3-4b": (62, 2560, 40, 73448, 32768),
    "mistral-7b": (32, 4096, 32, 32000, 32768),
    "mixtral-8x7b": (32, 4096, 32, 32000, 32768),
    "qwen3-30b-a3b": (48, 2048, 32, 151936, 40960),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    spec = load(name)
    heads = spec.attention.num_attention_heads
    sizes = (spec.num_layers, spec.hidden_size, heads, spec.vocab_size, spec.max_position_embeddings)
    assert sizes == SIZES[name]


# dense layers, routed and shared experts, experts per token, expert width, groups and chosen groups, scale
ROUTING = {
    "deepseek-r1": (3, 256, 1, 8, 2048, 8, 4, 2.5),
    "deepseek-v2": (1, 160, 2, 6, 1536, 8, 3, 16.0),
    "deepseek-v2-lite": (1, 64, 2, 6, 1408, 1, 1, 1.0),
    "deepseek-v3": (3, 256, 1, 8, 2048, 8, 4, 2.5),
    "kimi-k2": (1, 384, 1, 8, 2048, 1, 1, 2.827),
    "mixtral-8x7b": (0, 8, 0, 2, 14336, 1, 1, 1.0),
    "qwen3-30b-a3b": (0, 128, 0, 8, 768, 1, 1, 1.0),
}


@pytest.mark.parametrize("name", ROUTING)
def test_routing_is_the_published_one(name: str) -> None:
    spec = load(name)
    moe, router = spec.moe(), spec.moe().router
    dense = spec.ffn_kinds.count("dense")
    experts = (moe.n_routed_experts, moe.n_shared_experts, moe.num_experts_per_tok, moe.moe_intermediate_size)
    groups = (router.n_group, router.topk_group, router.routed_scaling_factor)
    assert (dense, *experts, *groups) == ROUTING[name]


def test_r1_is_v3_under_another_name() -> None:
    assert load("deepseek-r1").model_copy(update={"name": "deepseek-v3"}) == load("deepseek-v3")


def test_v3_is_balanced_and_predicts_ahead_as_the_report_says() -> None:
    spec = load("deepseek-v3")
    balance = spec.moe().router.balance
    assert (balance.bias_update_rate, balance.sequence_aux_loss_alpha) == (0.001, 0.0001)
    assert spec.mtp is not None and (spec.mtp.depth, spec.mtp.hidden) == (1, "post_norm")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_fp8_weights_where_they_are_published_as_such(name: str) -> None:
    assert (load(name).precision.linear.kind == "fp8_block") == (name in ("deepseek-v3", "deepseek-r1", "kimi-k2"))


@pytest.mark.parametrize("name", CLUSTER_NAMES)
def test_fp8_units_double_the_rate_where_there_are_any(name: str) -> None:
    cluster = load_cluster(name)
    if name in ("a10", "a100", "cpu"):
        assert cluster.fp8_flops is None
    else:
        assert cluster.fp8_flops == pytest.approx(2 * cluster.bf16_flops, rel=0.02)  # L40S's sheet has 733 and 362.05


def test_an_h800_is_an_h100_with_a_narrower_nvlink() -> None:
    h100, h800 = load_cluster("h100"), load_cluster("h800")
    assert (h100.scale_up_bandwidth, h800.scale_up_bandwidth) == (450e9, 200e9)
    assert (h100.bf16_flops, h100.hbm_bandwidth) == (h800.bf16_flops, h800.hbm_bandwidth)


def test_the_figures_that_dsc_zoo_prints_are_those_of_the_graphs() -> None:
    """`make goldens` writes spec/zoo.json anew."""
    assert json.loads(FIGURES.read_text(encoding="utf-8")) == zoo_figures()
