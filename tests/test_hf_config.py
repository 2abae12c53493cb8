"""config.json <-> spec: equal to what transformers computes, and nothing meaningful dropped on the way."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers

from dsc.compiler.hf import checkpoint_names, export_config, family, import_config, import_path
from dsc.compiler.hf.importer import spec_name
from dsc.compiler.hf.reader import NOT_SUPPORTED, NOT_UNDERSTOOD
from dsc.spec.errors import DscError
from dsc.spec.loader import load, loads
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import MODELS, names

Config = dict[str, Any]

ZOO = names(MODELS)

# The facts of the published configs; bookkeeping keys are left out.
YARN: Config = {"type": "yarn", "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
FP8: Config = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
DEEPSEEK_V3: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": FP8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {**YARN, "beta_fast": 32, "beta_slow": 1, "factor": 40},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
KIMI_K2: Config = {
    **DEEPSEEK_V3,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}
LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_405B: Config = {
    **LLAMA,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_hidden_layers": 126,
}
MIXTRAL: Config = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "vocab_size": 32000,
}
QWEN3_MOE: Config = {
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
DEEPSEEK_V2 = export_config(load("deepseek-v2"))
MINICPM3 = export_config(load("minicpm3-4b"))

PUBLISHED = {
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-r1": DEEPSEEK_V3,
    "kimi-k2": KIMI_K2,
    "llama-3.1-8b": LLAMA,
    "llama-3.1-405b": LLAMA_405B,
    "mixtral-8x7b": MIXTRAL,
    "qwen3-30b-a3b": QWEN3_MOE,
}


def imported(config: Config, name: str = "model") -> ModelSpec:
    return ModelSpec.model_validate(import_config(config, name))


def refusals(config: Config) -> set[str]:
    """The dotted keys that the import complains about."""
    with pytest.raises(DscError) as caught:
        import_config(config, "model")
    assert all(finding.code in (NOT_SUPPORTED, NOT_UNDERSTOOD) for finding in caught.value.findings)
    return {".".join(map(str, finding.key)) for finding in caught.value.findings}


def without_training(spec: ModelSpec) -> ModelSpec:
    """What is left of a spec when everything is dropped that only says how to train it."""
    data = spec.model_dump(exclude={"workload": True, "cluster": True, "precision": {"optimizer"}})
    if data["ffn"]["moe"]:
        del data["ffn"]["moe"]["router"]["balance"]
    if data["mtp"]:
        del data["mtp"]["loss_weight"]
    return ModelSpec.model_validate(data)


def carried(spec: ModelSpec) -> ModelSpec:
    """The spec without what a config has no room for: bias update rate, MTP's loss weight, optimizer, training, ..."""
    left_out = dict.fromkeys(("workload", "training", "rl", "cluster"), True)
    data = spec.model_dump(exclude={**left_out, "precision": {"optimizer"}, "tokens": {"reasoning"}})
    if data["ffn"]["moe"]:
        data["ffn"]["moe"]["router"]["balance"]["bias_update_rate"] = None
    if data["mtp"]:
        del data["mtp"]["loss_weight"]
    return ModelSpec.model_validate(data)


# Agreement with the zoo


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_import_as_the_zoo_entry(name: str) -> None:
    assert without_training(imported(PUBLISHED[name], name)) == without_training(load(name))


@pytest.mark.parametrize("name", ZOO)
def test_export_then_import_gives_the_spec_back(name: str) -> None:
    config = json.loads(json.dumps(export_config(load(name))))
    assert carried(imported(config, name)) == carried(load(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_exported_configs_say_what_the_published_ones_say(name: str) -> None:
    exported = export_config(load(name))
    for key in PUBLISHED[name].keys() & exported.keys() - {
        "rope_scaling",
        "model_type",
    }:
        assert exported[key] == PUBLISHED[name][key], key


@pytest.mark.parametrize("name", ZOO)
def test_exported_keys_are_sorted(name: str) -> None:
    assert list(export_config(load(name))) == sorted(export_config(load(name)))


# Agreement with transformers


@pytest.mark.parametrize("name", ZOO)
def test_autoconfig_takes_the_export(name: str, tmp_path: Path) -> None:
    config = export_config(load(name))
    (tmp_path / "config.json").write_text(json.dumps(config))
    accepted = transformers.AutoConfig.from_pretrained(tmp_path)
    for key, value in config.items():
        if key not in ("rope_scaling", "rope_theta", "torch_dtype", "quantization_config"):
            assert getattr(accepted, key) == value, key
    again = imported(accepted.to_dict() | {"dtype": config["torch_dtype"]}, name)
    assert carried(again) == carried(load(name))


# Billions of parameters without MTP, as published.
PARAMETERS = {
    "deepseek-v2": 235.74,
    "deepseek-v2-lite": 15.706,
    "deepseek-v3": 671.03,
    "kimi-k2": 1026.4,
    "llama-3.1-405b": 405.853,
    "llama-3.1-70b": 70.554,
    "llama-3.1-8b": 8.030,
    "minicpm3-4b": 4.07,
    "mixtral-8x7b": 46.70,
    "qwen3-30b-a3b": 30.53,
    "tiny": 0.0088,
}


def meta_model(spec: ModelSpec) -> Any:
    config = export_config(spec)
    config.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_export_has_the_published_number_of_parameters(name: str) -> None:
    model = meta_model(load(name))
    assert type(model).__name__ == family(load(name)).architecture
    total = sum(parameter.numel() for parameter in model.parameters())
    digits = len(str(PARAMETERS[name]).split(".")[1])
    assert round(total / 1e9, digits) == pytest.approx(PARAMETERS[name])


SMALL: Config = {
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "kv_lora_rank": 8,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "n_routed_experts": 4,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "topk_group": 1,
    "v_head_dim": 8,
    "vocab_size": 32,
}


def small(config: Config) -> Config:
    """The same type at sizes that are built in no time."""
    sizes = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_experts": 4,
        "num_local_experts": 4,
        "n_shared_experts": 1,
        **SMALL,
    }
    shrunk = {key: sizes.get(key, value) for key, value in config.items()}
    shrunk.pop("quantization_config", None)
    if shrunk["model_type"] == "kimi_k2":
        shrunk["model_type"] = "deepseek_v3"
    return shrunk


TYPES = {
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "minicpm3": MINICPM3,
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
}


@pytest.mark.parametrize("model_type", TYPES)
def test_what_save_pretrained_writes_is_read_alike(model_type: str, tmp_path: Path) -> None:
    """transformers 5 renames keys on the way out: dtype, rope_parameters, num_local_experts."""
    config = small(TYPES[model_type])
    transformers.AutoConfig.for_model(**copy.deepcopy(config)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved
    assert imported(saved) == imported(config)


@pytest.mark.parametrize("model_type", TYPES)
def test_checkpoint_names_are_those_on_disk(model_type: str, tmp_path: Path) -> None:
    config = small(TYPES[model_type])
    spec = imported(config)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = list(file.keys())
    on_disk = {key.removeprefix("model.layers.1.") for key in keys if key.startswith("model.layers.1.")}
    assert family(spec).model_type == model_type
    if spec.ffn.moe is None:
        assert "mlp.gate_proj.weight" in on_disk
        return
    moe_names = checkpoint_names(spec)
    block = f"{moe_names.moe_block}."
    experts = {
        f"{block}experts.{index}.{projection}.weight"
        for index in range(4)
        for projection in (moe_names.expert_gate, moe_names.expert_up, moe_names.expert_down)
    }
    gate = {block + moe_names.gate}
    if spec.ffn.moe.router.selection_bias:
        gate.add(block + moe_names.selection_bias)
    assert {key for key in on_disk if key.startswith(block) and ".shared_experts." not in key} == experts | gate


# From here on the numbers that a spec's YaRN stands for, against those that transformers computes.

YARN_VARIANTS: list[Config] = [
    {},
    {"mscale": 1.0, "mscale_all_dim": 1.0},
    {"mscale": 0.707, "mscale_all_dim": 0.707},
    {"mscale": 0.707, "mscale_all_dim": 1.0},
    {"mscale": 1.2, "mscale_all_dim": 0.5},
    {"mscale": 0.707},
    {"mscale_all_dim": 0.707},
    {"mscale": 1.0, "mscale_all_dim": 0.0},
    {"attention_factor": 1.0},
    {"attention_factor": 1.3, "mscale_all_dim": 0.8},
    {"attention_factor": 1.1, "mscale": 1.0, "mscale_all_dim": 1.0},
    {"factor": None},
    {"beta_fast": 1, "beta_slow": 1},
    {"beta_fast": None},
]


def with_yarn(config: Config, parameters: Config, layout: str) -> Config:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **parameters}
    rest = {key: value for key, value in small(config).items() if key not in ("rope_scaling", "rope_theta")}
    if config["model_type"] == "mixtral":
        rest["head_dim"] = 8  # transformers stumbles over YaRN where it has none
    if layout == "rope_parameters":
        return rest | {"rope_parameters": {**yarn, "rope_theta": 10000.0}}
    return rest | {"rope_scaling": yarn, "rope_theta": 10000.0}


def magnitude(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


@pytest.mark.parametrize("layout", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("parameters", YARN_VARIANTS, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_yarn_means_what_transformers_computes(model_type: str, parameters: Config, layout: str) -> None:
    config = with_yarn(TYPES[model_type], parameters, layout)
    try:
        spec = imported(config)
    except DscError as error:
        # Only where cos and sin shrink, which no mscale does.
        assert [finding.key[-1] for finding in error.findings] == ["attention_factor"]
        assert parameters == {"mscale": 0.707, "mscale_all_dim": 1.0} and spec_is_grouped(model_type)
        return
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**copy.deepcopy(config)))
    scaling: Any = spec.attention.rope.scaling
    cos_factor = magnitude(scaling.factor, scaling.mscale) / magnitude(scaling.factor, scaling.mscale_all_dim)
    attention = model.model.layers[0].self_attn
    head_dim = getattr(attention, "qk_head_dim", None) or attention.head_dim
    softmax = head_dim**-0.5 * magnitude(scaling.factor, scaling.mscale_all_dim) ** 2
    assert model.model.rotary_emb.attention_scaling == pytest.approx(cos_factor, rel=1e-9)
    assert attention.scaling == pytest.approx(softmax, rel=1e-9)
    assert imported(export_config(spec)) == spec


def spec_is_grouped(model_type: str) -> bool:
    return model_type in ("llama", "mixtral", "qwen3_moe")


# What the language cannot say is refused, by key and all at once

REFUSED: list[tuple[Config, str, object]] = [
    (DEEPSEEK_V3, "attention_bias", True),
    (DEEPSEEK_V3, "attention_dropout", 0.1),
    (DEEPSEEK_V3, "architectures", ["DeepseekV3ForSequenceClassification"]),
    (DEEPSEEK_V3, "hidden_act", "gelu"),
    (DEEPSEEK_V3, "moe_layer_freq", 2),
    (DEEPSEEK_V3, "num_key_value_heads", 8),
    (DEEPSEEK_V3, "scoring_func", "softmax"),
    (DEEPSEEK_V3, "topk_method", "greedy"),
    (DEEPSEEK_V3, "torch_dtype", "float16"),
    (DEEPSEEK_V3, "partial_rotary_factor", 0.5),
    (DEEPSEEK_V3, "index_topk", 2048),
    (DEEPSEEK_V3, "num_hidden_layers", 0),
    (DEEPSEEK_V3, "num_hidden_layers", 10**12),
    (DEEPSEEK_V3, "hidden_size", "7168"),
    (DEEPSEEK_V3, "hidden_size", 7168.0),
    (DEEPSEEK_V3, "vocab_size", True),
    (DEEPSEEK_V3, "n_routed_experts", None),
    (DEEPSEEK_V3, "norm_topk_prob", 1),
    (DEEPSEEK_V3, "routed_scaling_factor", "2.5"),
    (DEEPSEEK_V3, "rope_scaling", "yarn"),
    (DEEPSEEK_V3, "first_k_dense_replace", 61),
    (KIMI_K2, "seq_aux", False),
    (DEEPSEEK_V2, "mlp_bias", True),
    (DEEPSEEK_V2, "norm_topk_prob", True),
    (DEEPSEEK_V2, "scoring_func", "sigmoid"),
    (DEEPSEEK_V2, "topk_method", "noaux_tc"),
    (DEEPSEEK_V2, "n_group", None),
    (LLAMA, "attention_bias", True),
    (LLAMA, "mlp_bias", True),
    (LLAMA, "sliding_window", 4096),
    (LLAMA, "layer_types", ["sliding_attention"]),
    (MIXTRAL, "sliding_window", 4096),
    (MIXTRAL, "router_jitter_noise", 0.1),
    (MIXTRAL, "output_router_logits", True),
    (QWEN3_MOE, "output_router_logits", True),
    (QWEN3_MOE, "mlp_only_layers", "none"),
    (QWEN3_MOE, "decoder_sparse_step", 0),
    (MINICPM3, "attention_bias", True),
    (MINICPM3, "mlp_bias", True),
]
KEY_IN_FINDING = {"torch_dtype": "dtype", "first_k_dense_replace": "num_nextn_predict_layers"}


@pytest.mark.parametrize(("config", "key", "value"), REFUSED, ids=lambda value: str(value)[:40])
def test_keys_without_a_counterpart_are_refused(config: Config, key: str, value: object) -> None:
    assert refusals({**config, key: value}) == {KEY_IN_FINDING.get(key, key)}


def test_a_sliding_window_in_use_is_refused() -> None:
    assert refusals({**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 4096}) == {"sliding_window"}
    imported({**QWEN3_MOE, "sliding_window": 4096})


@pytest.mark.parametrize(
    ("rope", "key"),
    [
        ({"rope_type": "linear", "factor": 2.0}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type"),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "rope_type"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.9}, "attention_factor"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "default", "factor": 4.0}, "factor"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rotary_scalings_without_a_counterpart_are_refused(rope: Config, key: str) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "rope_scaling"}
    assert refusals({**config, "rope_parameters": rope}) == {f"rope_parameters.{key}"}


def test_one_name_for_one_key() -> None:
    assert refusals({**LLAMA, "rope_parameters": {"rope_type": "default"}}) == {"rope_scaling"}
    assert refusals({**LLAMA, "dtype": "float32"}) == {"torch_dtype"}
    assert refusals({**QWEN3_MOE, "num_local_experts": 64}) == {"num_experts"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_method", "awq"),
        ("activation_scheme", "static"),
        ("fmt", "e5m2"),
        ("scale_fmt", "e4m3"),
        ("weight_block_size", None),
        ("weight_block_size", [128]),
        ("modules_to_not_convert", ["lm_head", "model.layers.0.mlp.down_proj"]),
        ("bits", 4),
    ],
    ids=str,
)
def test_quantisations_without_a_counterpart_are_refused(key: str, value: object) -> None:
    config = {**DEEPSEEK_V3, "quantization_config": {**FP8, key: value}}
    assert refusals(config) == {f"quantization_config.{key}"}


@pytest.mark.parametrize("model_type", ["deepseek_v32", "deepseek_v4", "qwen3_next", "", None, 3])
def test_other_model_types_are_refused(model_type: object) -> None:
    assert refusals({**DEEPSEEK_V3, "model_type": model_type}) == {"model_type"}


def test_all_refusals_come_at_once() -> None:
    config = {**MIXTRAL, "hidden_act": "gelu", "sliding_window": 1, "vocab_size": None, "surprise": 1}
    assert refusals(config) == {"hidden_act", "sliding_window", "vocab_size", "surprise"}


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(DscError, match="hidden_size = 0"):
        import_config({**DEEPSEEK_V3, "hidden_size": 0}, "model")


JUNK: list[object] = [None, True, -1, 0, 1, 0.5, 1e308, 2**70, "", "x", [], [1], [None], {}, {"x": 1}]


@pytest.mark.parametrize("model_type", TYPES)
def test_no_value_of_any_key_goes_wrong_in_another_way(model_type: str) -> None:
    config = TYPES[model_type]
    imported(config)
    for key in sorted(config):
        for value in JUNK:
            try:
                spec = imported({**config, key: value})
            except DscError:
                continue
            if family(spec) is not None:
                assert imported(export_config(spec)) == spec, (key, value)


# Defaults and variants


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    keys = ("num_nextn_predict_layers", "n_group", "topk_group", "norm_topk_prob", "first_k_dense_replace")
    rest = {
        key: value for key, value in DEEPSEEK_V3.items() if key not in (*keys, "rope_theta", "routed_scaling_factor")
    }
    assert imported(rest) == imported(DEEPSEEK_V3)
    assert imported({key: value for key, value in MIXTRAL.items() if key != "rope_theta"}) == imported(MIXTRAL)


def test_queries_without_a_latent() -> None:
    assert imported({**DEEPSEEK_V3, "q_lora_rank": None}).attention.q_lora_rank is None


def test_half_layout() -> None:
    spec = imported({**DEEPSEEK_V3, "rope_interleave": False})
    assert spec.attention.rope.layout == "half"
    assert export_config(spec)["rope_interleave"] is False


def test_scales_that_are_powers_of_two() -> None:
    spec = imported({**DEEPSEEK_V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}})
    assert spec.precision.linear.scale == "ue8m0"
    assert export_config(spec)["quantization_config"] == {**FP8, "scale_fmt": "ue8m0"}


def test_float32_models_cache_float32() -> None:
    precision = imported({**LLAMA, "torch_dtype": "float32"}).precision
    assert (precision.parameters, precision.kv_cache) == ("fp32", "fp32")


def test_greedy_v2_has_no_groups() -> None:
    router = imported({**DEEPSEEK_V2, "topk_method": "greedy"}).moe().router
    assert (router.n_group, router.topk_group, router.group_score) == (1, 1, None)


def test_dense_layers_between_experts() -> None:
    spec = imported({**QWEN3_MOE, "num_hidden_layers": 6, "mlp_only_layers": [1], "decoder_sparse_step": 2})
    assert [(group.repeat, group.ffn) for group in spec.layers] == [(3, "dense"), (1, "moe"), (1, "dense"), (1, "moe")]
    assert export_config(spec)["mlp_only_layers"] == [0, 1, 2, 4]
    assert imported(export_config(spec)) == spec


def test_minicpm_without_multipliers() -> None:
    spec = imported({**MINICPM3, "scale_emb": 1, "scale_depth": None, "dim_model_base": None})
    assert (spec.embedding_multiplier, spec.residual.multiplier, spec.logit_multiplier) == (1, 1, 1)
    assert imported(export_config(spec)) == spec


# Export


def edited(name: str, edit: Callable[[Config], None]) -> ModelSpec:
    data = load(name).model_dump()
    edit(data)
    return ModelSpec.model_validate(data)


OBJECTIONS: list[tuple[str, Callable[[Config], None], tuple[str, ...]]] = [
    ("deepseek-v3", lambda spec: spec["attention"].update(latent_norm_eps=1e-5), ("attention", "latent_norm_eps")),
    ("deepseek-v3", lambda spec: spec["mtp"].update(hidden="pre_norm"), ("mtp", "hidden")),
    ("deepseek-v3", lambda spec: spec.update(embedding_multiplier=2.0), ("embedding_multiplier",)),
    ("deepseek-v3", lambda spec: spec["residual"].update(multiplier=2.0), ("residual", "multiplier")),
    ("deepseek-v3", lambda spec: spec["layers"].reverse(), ("layers",)),
    (
        "deepseek-v3",
        lambda spec: spec["ffn"]["moe"]["router"].update(group_score="max"),
        ("ffn", "moe", "router", "group_score"),
    ),
    (
        "deepseek-v3",
        lambda spec: spec["precision"]["linear"].update(activation_block=[1, 64]),
        ("precision", "linear", "activation_block"),
    ),
    (
        "deepseek-v2",
        lambda spec: spec["ffn"]["moe"]["router"].update(norm_topk_prob=True),
        ("ffn", "moe", "router", "norm_topk_prob"),
    ),
    ("deepseek-v2", lambda spec: spec.update(mtp={"depth": 1}), ("mtp",)),
    ("minicpm3-4b", lambda spec: spec.update(logit_multiplier=0.1234), ("logit_multiplier",)),
    (
        "llama-3.1-8b",
        lambda spec: spec["attention"]["rope"].update(layout="interleaved"),
        ("attention", "rope", "layout"),
    ),
    ("deepseek-v2-lite", lambda spec: spec.update(hidden_size=2050), ("hidden_size",)),
    ("llama-3.1-8b", lambda spec: spec["attention"].update(qk_norm={"eps": 1e-3}), ("attention", "qk_norm")),
    (
        "tiny-window",
        lambda spec: spec["attention"]["full"]["rope"].update(theta=1e6),
        ("attention",),
    ),
    (
        "mistral-7b",
        lambda spec: spec["attention"]["rope"].update(layout="interleaved"),
        ("attention", "rope", "layout"),
    ),
    ("qwen3-30b-a3b", lambda spec: spec["attention"]["qk_norm"].update(eps=1e-5), ("attention", "qk_norm")),
    ("mixtral-8x7b", lambda spec: spec["ffn"]["moe"].update(n_shared_experts=1), ("ffn", "moe", "n_shared_experts")),
]


@pytest.mark.parametrize(("name", "edit", "key"), OBJECTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_specs_without_a_model_type_are_refused_with_the_reason(
    name: str, edit: Callable[[Config], None], key: tuple[str, ...]
) -> None:
    spec = edited(name, edit)
    assert family(spec) is None
    with pytest.raises(DscError) as caught:
        export_config(spec)
    assert [finding.key for finding in caught.value.findings] == [key]


def test_names_without_a_model_type_are_deepseeks() -> None:
    spec = edited("mixtral-8x7b", lambda spec: spec["ffn"]["moe"].update(n_shared_experts=1))
    assert checkpoint_names(spec) == checkpoint_names(load("deepseek-v3"))


# Files


def test_a_folder_becomes_a_spec_file(tmp_path: Path) -> None:
    folder = tmp_path / "DeepSeek-V3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    text = import_path(folder)
    assert text == import_path(folder / "config.json")
    assert text.startswith("# Imported from a Hugging Face config.json of type deepseek_v3.\n")
    assert str(tmp_path) not in text
    assert without_training(loads(text, "deepseek-v3.yaml")) == without_training(load("deepseek-v3"))


@pytest.mark.parametrize("name", ZOO)
def test_the_text_of_an_import_loads_as_the_spec(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(export_config(load(name))))
    assert carried(loads(import_path(file), name)) == carried(load(name))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"model_type": "llama", "model_type": "mixtral"}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"],
    ids=["empty", "cut", "list", "twice", "deep", "long number"],
)
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(DscError, match=NOT_UNDERSTOOD):
        import_path(file)


def test_a_missing_file_and_a_folder_without_config(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(DscError, match="No such file"):
            import_path(path)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(DscError):
        import_config({**LLAMA, "rms_norm_eps": math.nan}, "model")


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("DeepSeek-V3", "deepseek-v3"),
        ("Meta-Llama-3.1-8B", "meta-llama-3.1-8b"),
        ("My_Model (copy)", "my-model-copy"),
        ("a..b--c.", "a.b-c"),
        ("0a1b2c", "deepseek-v3"),
        ("", "deepseek-v3"),
        ("x" * 100, "x" * 64),
    ],
)
def test_names_of_specs(origin: str, name: str) -> None:
    assert spec_name(origin, "deepseek_v3") == name
