"""The zoo at full size on the meta device: graph == emitted model == transformers, tensor by tensor.

With them the published figures: totals, active parameters, KV bytes and FLOPs.
"""

import importlib
import importlib.util
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.facts.stats import Stats, compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.compiler.hf import export_config, family
from dsc.spec.attention import MlaAttention, WindowAttention
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import MODELS, names

Shapes = dict[str, tuple[int, ...]]

ZOO = names(MODELS)
SECONDS = 20.0  # to emit, import and build the largest model; it takes one or two


@dataclass(frozen=True)
class Emitted:
    spec: ModelSpec
    graph: Graph
    model: nn.Module
    checkpoint: ModuleType
    seconds: float


@pytest.fixture(scope="module")
def emitted_zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Emitted]:
    return {name: emit_full_size(name, tmp_path_factory.mktemp("zoo")) for name in ZOO}


def emit_full_size(name: str, folder: Path) -> Emitted:
    start = time.perf_counter()
    spec = load(name)
    program = build(spec)
    write(emit(program), folder / spec.package_name)
    package = f"full_size_{spec.package_name}"
    found = importlib.util.spec_from_file_location(
        package,
        folder / spec.package_name / "__init__.py",
        submodule_search_locations=[str(folder / spec.package_name)],
    )
    assert found is not None
    sys.modules[package] = importlib.util.module_from_spec(found)
    with torch.device("meta"):
        model = importlib.import_module(f"{package}.model").Model()
    checkpoint = importlib.import_module(f"{package}.checkpoint")
    return Emitted(spec, program.training, model, checkpoint, time.perf_counter() - start)


@cache
def transformers_shapes(name: str) -> tuple[Shapes, int]:
    """transformers' tensors as its save_pretrained would name them, and the number of its parameters."""
    config = export_config(load(name))
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {name: tuple(t.shape) for name, t in revert_weight_conversion(model, state).items()}, total


@cache
def stats(name: str) -> Stats:
    spec = load(name)
    return compute_stats(spec, build(spec).training)


@pytest.mark.parametrize("name", ZOO)
def test_graph_equals_emitted_model(name: str, emitted_zoo: dict[str, Emitted]) -> None:
    emitted = emitted_zoo[name]
    graph = {name: tuple(dim.value() for dim in p.type.shape) for name, p in emitted.graph.parameters().items()}
    assert graph == {name: tuple(parameter.shape) for name, parameter in emitted.model.named_parameters()}


@pytest.mark.parametrize("name", ZOO)
def test_emitted_model_equals_transformers(name: str, emitted_zoo: dict[str, Emitted]) -> None:
    """Under the names of the checkpoint, the selection bias with them. transformers builds no multi-token predictor."""
    emitted = emitted_zoo[name]
    layers = tuple(f"model.layers.{emitted.spec.num_layers + depth}." for depth in range(16))
    tensors = dict(emitted.checkpoint.named_tensors(emitted.model))
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith(layers)}
    theirs, _ = transformers_shapes(name)
    assert ours == theirs
    if emitted.spec.mtp is not None:
        assert len(ours) < len(tensors)


@pytest.mark.parametrize("name", ZOO)
def test_totals(name: str, emitted_zoo: dict[str, Emitted]) -> None:
    """The selection bias is no parameter: it is a buffer everywhere."""
    emitted = emitted_zoo[name]
    mtp = sum(p.numel() for name, p in emitted.model.named_parameters() if name.startswith("mtp."))
    main = sum(p.numel() for p in emitted.model.parameters()) - mtp
    _, theirs = transformers_shapes(name)
    assert main == theirs == stats(name).parameters.total
    assert mtp == stats(name).parameters.mtp
    assert not any("bias" in name for name, _ in emitted.model.named_parameters())


@pytest.mark.parametrize("name", ZOO)
def test_full_size_is_quick(name: str, emitted_zoo: dict[str, Emitted]) -> None:
    assert emitted_zoo[name].seconds < SECONDS


@pytest.mark.parametrize("name", ZOO)
def test_every_model_has_a_type(name: str) -> None:
    assert family(load(name)) is not None


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # DeepSeek-V3's paper says 671B and 37B, V2's 15.7B; the rest are counted from published configs.
        ("deepseek-v3", "671.03", "37.55"),
        ("deepseek-r1", "671.03", "37.55"),
        ("deepseek-v2", "235.74", "21.38"),
        ("deepseek-v2-lite", "15.706", "2.66"),
        ("kimi-k2", "1026.4", "32.86"),
        ("llama-3.1-8b", "8.030", "8.030"),
        ("llama-3.1-70b", "70.554", "70.554"),
        ("llama-3.1-405b", "405.853", "405.853"),
        ("qwen3-30b-a3b", "30.53", "3.35"),
        ("mixtral-8x7b", "46.70", "12.88"),
        ("minicpm3-4b", "4.07", "4.07"),
    ],
)
def test_published_parameters(name: str, total: str, active: str) -> None:
    def billions(count: int, like: str) -> str:
        return f"{count / 1e9:.{len(like.partition('.')[2])}f}"

    parameters = stats(name).parameters
    assert (billions(parameters.total, total), billions(parameters.active, active)) == (total, active)


def test_active_without_embedding() -> None:
    """36.63B: DeepSeek-V3 less its embedding table."""
    parameters = stats("deepseek-v3").parameters
    assert f"{parameters.active_without_embedding / 1e9:.2f}" == "36.63"
    assert parameters.active - parameters.active_without_embedding == 129280 * 7168


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deepseek-v3", 70_272),
        ("deepseek-r1", 70_272),
        ("kimi-k2", 70_272),
        ("deepseek-v2", 69_120),
        ("deepseek-v2-lite", 31_104),
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
    ],
)
def test_published_cache_sizes(name: str, size: int) -> None:
    assert stats(name).kv_cache_bytes_per_token == size


@pytest.mark.parametrize("name", ZOO)
def test_cache_bytes(name: str) -> None:
    """Written out: a latent and a rotary key, or keys and values of the shared heads, for each layer. What a window
    keeps does not grow with the tokens beyond it."""
    spec, found = load(name), stats(name)
    width = {"bf16": 2, "fp32": 4}[spec.precision.kv_cache]
    growing = whole = last = 0
    for layer in spec.schedule:
        attention = spec.attentions[layer.attention]
        if isinstance(attention, MlaAttention):
            last = (attention.kv_lora_rank + attention.qk_rope_head_dim) * width
        else:
            last = 2 * attention.num_key_value_heads * attention.head_dim * width
        window = attention.window if isinstance(attention, WindowAttention) else None
        growing += last if window is None else 0
        whole += last * min(found.sequence_length, window or found.sequence_length)
    assert found.kv_cache_bytes_per_token == growing
    assert found.kv_cache_bytes == whole
    depth = 0 if spec.mtp is None else spec.mtp.depth
    assert found.kv_cache_bytes_per_token_mtp == depth * last


def test_published_training_flops() -> None:
    """250 GFLOPs per token at 4096 tokens: DeepSeek-V3 as several papers count it, causal."""
    assert stats("deepseek-v3").sequence_length == 4096
    assert f"{stats('deepseek-v3').flops_per_token.training / 1e9:.1f}" == "250.5"


@pytest.mark.parametrize("name", ZOO)
def test_training_flops_by_formula(name: str) -> None:
    """6 x active parameters without the embedding + 3 x S x H x (qk + v) x layers, exactly; in a layer with a window
    less what is before it, 3 x (S - W)^2 / S x H x (qk + v)."""
    spec, found = load(name), stats(name)
    length, products = found.sequence_length, 0
    for layer in spec.schedule:
        attention = spec.attentions[layer.attention]
        if isinstance(attention, MlaAttention):
            widths = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        else:
            widths = 2 * attention.head_dim
        unseen = max(length - attention.window, 0) if isinstance(attention, WindowAttention) else 0
        products += 3 * (length - unseen**2 / length) * attention.num_attention_heads * widths
    assert found.flops_per_token.training == 6 * found.parameters.active_without_embedding + products
    assert found.flops_per_token.forward * 3 == found.flops_per_token.training


@pytest.mark.parametrize("name", ZOO)
def test_active_parameters(name: str) -> None:
    """total - routed experts + routed experts x top-k / experts."""
    spec, found = load(name), stats(name).parameters
    moe = spec.ffn.moe
    if moe is None:
        assert found.active == found.total
        return
    layers = spec.ffn_kinds.count("moe")
    routed = layers * moe.n_routed_experts * 3 * spec.hidden_size * moe.moe_intermediate_size
    assert found.active == found.total - routed + routed * moe.num_experts_per_tok // moe.n_routed_experts
