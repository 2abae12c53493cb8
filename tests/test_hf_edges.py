"""Configs as people have them: null, harmless keys, wrappers, special tokens; and errors that carry file and key."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # the published configs stand in a test beside

from test_hf_config import DEEPSEEK_V3, FP8, LLAMA, MIXTRAL, QWEN3_MOE, imported, refusals

from dsc.compiler.cli import main
from dsc.compiler.hf import export_config, import_config, import_path
from dsc.spec.checks import cautions
from dsc.spec.errors import DscError
from dsc.spec.loader import load, loads
from dsc.spec.model import ModelSpec

Config = dict[str, Any]

# --- null, by what transformers makes of it

NULL_MEANS: list[tuple[Config, str, str, object]] = [
    (DEEPSEEK_V3, "norm_topk_prob", "ffn.moe.router.norm_topk_prob", False),
    (DEEPSEEK_V3, "rope_interleave", "attention.rope.layout", "half"),
    (DEEPSEEK_V3, "num_nextn_predict_layers", "mtp", None),
    (DEEPSEEK_V3, "q_lora_rank", "attention.q_lora_rank", None),
    (DEEPSEEK_V3, "num_key_value_heads", "attention.num_attention_heads", 128),
    (DEEPSEEK_V3, "rope_scaling", "attention.rope.scaling.kind", "none"),
    (LLAMA, "num_key_value_heads", "attention.num_key_value_heads", 32),
    (LLAMA, "head_dim", "attention.head_dim", 128),
    (LLAMA, "eos_token_id", "tokens.eos", None),
    (MIXTRAL, "head_dim", "attention.head_dim", 128),
]
NULL_REFUSED = [
    *((DEEPSEEK_V3, key) for key in ("rms_norm_eps", "routed_scaling_factor", "tie_word_embeddings", "n_group")),
    *((DEEPSEEK_V3, key) for key in ("topk_group", "n_shared_experts", "v_head_dim", "first_k_dense_replace")),
    *((DEEPSEEK_V3, key) for key in ("attention_bias", "attention_dropout", "hidden_act", "rope_theta", "head_dim")),
    *((QWEN3_MOE, key) for key in ("norm_topk_prob", "num_key_value_heads", "head_dim", "decoder_sparse_step")),
    *((QWEN3_MOE, key) for key in ("use_sliding_window", "output_router_logits", "initializer_range", "use_cache")),
    *((MIXTRAL, key) for key in ("num_key_value_heads", "router_jitter_noise", "router_aux_loss_coef")),
]


@pytest.mark.parametrize(("config", "key", "path", "value"), NULL_MEANS, ids=str)
def test_null_is_what_transformers_makes_of_it(config: Config, key: str, path: str, value: object) -> None:
    found: Any = imported({**config, key: None})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(("config", "key"), NULL_REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_null_that_transformers_refuses_is_refused(config: Config, key: str) -> None:
    assert {name.replace("num_local_experts", "num_experts") for name in refusals({**config, key: None})} == {key}


@pytest.mark.parametrize("key", ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"])
def test_null_in_a_stretch_is_its_default(key: str) -> None:
    stretch = {name: value for name, value in DEEPSEEK_V3["rope_scaling"].items() if name != key}
    absent = imported({**DEEPSEEK_V3, "rope_scaling": stretch})
    assert imported({**DEEPSEEK_V3, "rope_scaling": {**stretch, key: None}}) == absent


def test_head_dim_beside_another_rotary_part_is_refused() -> None:
    assert refusals({**DEEPSEEK_V3, "head_dim": 128}) == {"head_dim"}
    assert imported({**DEEPSEEK_V3, "head_dim": 64}) == imported(DEEPSEEK_V3)


QWEN2: Config = {  # DeepSeek-R1-Distill-Qwen-1.5B
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "vocab_size": 151936,
}

# --- harmless keys, and those that are not

HARMLESS: list[tuple[Config, Config]] = [
    (
        QWEN3_MOE,
        {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True, "sliding_window": None},
    ),
    (LLAMA, {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 1.0}}),
    (QWEN2, {"use_mrope": False, "qkv_bias": True, "use_sliding_window": False}),
    (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 1}}),
    (MIXTRAL, {"top_p": 0.9, "max_length": 20, "is_decoder": False, "torchscript": False, "num_labels": 2}),
    (DEEPSEEK_V3, {"sliding_window": None, "anything": None}),
]
CHANGING: list[tuple[Config, str, object]] = [
    (QWEN3_MOE, "qkv_bias", True),
    (QWEN3_MOE, "shared_expert_intermediate_size", 512),
    (QWEN3_MOE, "use_qk_norm", False),
    (LLAMA, "rope_interleaved", True),
    (LLAMA, "is_decoder", True),
    (LLAMA, "attention_bias", True),
    (QWEN2, "qkv_bias", False),
    (QWEN2, "use_mrope", True),
    (QWEN2, "attention_bias", True),
    (LLAMA, "attention_multiplier", 0.5),
    (MIXTRAL, "use_qk_norm", True),
]


@pytest.mark.parametrize(("config", "keys"), HARMLESS, ids=lambda value: ",".join(value) if len(value) < 9 else "")
def test_harmless_keys_are_known(config: Config, keys: Config) -> None:
    plain = {**config, "rope_scaling": None} if "rope_scaling" in keys else config
    assert imported({**config, **keys}) == imported(plain)


@pytest.mark.parametrize(("config", "key", "value"), CHANGING, ids=str)
def test_what_changes_the_model_is_refused_with_its_value(config: Config, key: str, value: object) -> None:
    with pytest.raises(DscError) as caught:
        import_config({**config, key: value}, "model")
    (finding,) = caught.value.findings
    assert finding.key == (key,) and str(value).lower() in finding.message.lower()


@pytest.mark.parametrize(
    "modules",
    [
        ["lm_head"],
        ["model.embed_tokens", "lm_head", "model.norm"],
        ["model.layers.0.input_layernorm", "model.layers.3.mlp.gate", "model.layers.0.self_attn.q_norm"],
        ["gate", "eh_proj", "shared_head.head"],
        None,
    ],
)
def test_modules_that_are_never_in_fp8_may_be_named(modules: list[str] | None) -> None:
    quantized = {**FP8, "modules_to_not_convert": modules}
    assert imported({**DEEPSEEK_V3, "quantization_config": quantized}) == imported(DEEPSEEK_V3)


@pytest.mark.parametrize("module", ["mlp.gate_proj", "model.layers.0.self_attn", "model.layers.61", "q_a_proj", ".*"])
def test_projections_that_are_left_out_of_fp8_are_refused(module: str) -> None:
    quantized = {**FP8, "modules_to_not_convert": ["lm_head", module]}
    with pytest.raises(DscError, match=r"modules_to_not_convert names") as caught:
        import_config({**DEEPSEEK_V3, "quantization_config": quantized}, "model")
    assert repr(module) in caught.value.findings[0].message


# --- new types

GLM: Config = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "bos_token_id": None,
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}
YOUTU: Config = {
    "architectures": ["YoutuForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "model_type": "youtu",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_theta": 1600000,
    "vocab_size": 128256,
}


def test_glm4_moe_lite() -> None:
    spec = imported(GLM)
    assert [(group.repeat, group.ffn) for group in spec.layers] == [(1, "dense"), (46, "moe")]
    assert (
        spec.mtp is not None
        and spec.moe().router.routed_scaling_factor == 1.8
        and spec.tokens.eos == GLM["eos_token_id"]
    )
    assert imported({**GLM, "mlp_layer_types": ["dense"] + ["sparse"] * 46}) == spec
    assert refusals({**GLM, "mlp_layer_types": ["sparse"] * 47}) == {"first_k_dense_replace"}
    assert refusals({**GLM, "mlp_layer_types": ["sparse"] * 3}) == {"mlp_layer_types"}
    assert imported(export_config(spec)) == spec


def test_youtu() -> None:
    spec = imported(YOUTU)
    assert spec.tie_word_embeddings and spec.tokens.bos == 128000 and spec.attention.rope.layout == "interleaved"
    assert spec.initializer_range == pytest.approx(2 / (5 * 2048) ** 0.5)
    assert imported({**YOUTU, "initializer_range": None}) == spec
    assert imported(export_config(spec)) == spec


def test_qwen2() -> None:
    spec = imported(QWEN2)
    assert spec.attention.qkv_bias and spec.attention.kind == "gqa" and spec.attention.head_dim == 128
    assert imported(export_config(spec)) == spec
    last = imported({**QWEN2, "use_sliding_window": True})
    assert [(group.repeat, group.kinds[0].attention) for group in last.layers] == [(21, "full"), (7, "sliding")]
    assert imported(export_config(last)) == last
    assert refusals({**QWEN2, "use_sliding_window": True, "layer_types": ["full_attention"]}) == {"layer_types"}


def test_biases_of_other_types_have_no_model_type() -> None:
    data = imported(QWEN3_MOE).model_dump()
    data["attention"]["qkv_bias"] = True
    with pytest.raises(DscError, match="have no biases"):
        export_config(ModelSpec.model_validate(data))


def test_one_expert_per_token_is_valid_where_weights_are_always_normalized() -> None:
    spec = imported({**MIXTRAL, "num_experts_per_tok": 1}, "mixtral")
    text = json.dumps(spec.model_dump(mode="json"))
    assert loads(text, "spec.yaml") == spec
    assert len(cautions(spec)) == 1 and not cautions(load("mixtral-8x7b"))


# --- wrappers, special tokens, files


def written(folder: Path, config: Config, **beside: Config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_language_model_of_a_wrapper(tmp_path: Path) -> None:
    text = {key: value for key, value in DEEPSEEK_V3.items() if key not in ("torch_dtype", "eos_token_id")}
    config = {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "eos_token_id": 7,
        "media_placeholder_token_id": 163605,
        "text_config": {**text, "model_type": "kimi_k2"},
        "vision_config": {"hidden_size": 1152},
    }
    spec = loads(import_path(written(tmp_path / "k", config)), "k")
    assert spec.attention == load("deepseek-v3").attention and spec.tokens.eos == [7]
    lines = import_path(tmp_path / "k").splitlines()
    assert (
        lines[1] == "# It is the language model inside kimi_k25; left out: media_placeholder_token_id, vision_config."
    )
    del config["text_config"]["model_type"]  # transformers: deepseek_v3
    assert imported(config).attention == spec.attention


def test_a_wrapper_that_disagrees_with_its_language_model_is_refused() -> None:
    wrapper = {"model_type": "kimi_k25", "tie_word_embeddings": True, "text_config": DEEPSEEK_V3}
    assert refusals(wrapper) == {"tie_word_embeddings"}
    assert refusals({"model_type": "kimi_k25", "text_config": {**DEEPSEEK_V3, "x": 1}}) == {"text_config.x"}
    assert refusals({"model_type": "other", "text_config": {**DEEPSEEK_V3, "model_type": "other"}}) == {"model_type"}


def test_special_tokens_are_imported_and_exported() -> None:
    spec = imported({**LLAMA, "eos_token_id": [128001, 128008], "pad_token_id": -1})
    assert spec.tokens.model_dump(exclude={"reasoning"}) == {"bos": 128000, "eos": [128001, 128008], "pad": None}
    exported = export_config(spec)
    assert [exported[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [128000, [128001, 128008], None]
    assert imported(exported) == spec


def test_absent_special_tokens_are_those_of_the_type() -> None:
    absent = {key: value for key, value in LLAMA.items() if not key.endswith("_token_id")}
    assert imported(absent).tokens.model_dump(exclude={"reasoning"}) == {"bos": 1, "eos": [2], "pad": None}


def test_generation_config_says_what_ends_a_text(tmp_path: Path) -> None:
    folder = written(tmp_path, LLAMA, generation_config={"eos_token_id": [128001, 128009], "temperature": 0.6})
    tokens = loads(import_path(folder), "x").tokens
    assert (tokens.bos, tokens.eos, tokens.pad) == (128000, [128001, 128009], None)


def test_tokens_outside_the_vocabulary_are_left_out_with_a_word(tmp_path: Path) -> None:
    text = import_path(written(tmp_path, {**LLAMA, "vocab_size": 32}))
    assert "# Left out: eos_token_id [128001]" in text and not loads(text, "x").tokens.ids()


@pytest.mark.parametrize("name", ["torch", "class", "typing", "json"])
def test_a_folder_s_name_that_no_package_can_have(name: str, tmp_path: Path) -> None:
    assert loads(import_path(written(tmp_path / name, LLAMA)), "x").name == f"{name}-model"


REFUSED_FILES: list[tuple[Config, str]] = [
    ({**LLAMA, "hidden_act": "gelu"}, "hidden_act"),
    ({**QWEN3_MOE, "num_experts": 0}, "num_experts"),
    ({**LLAMA, "max_position_embeddings": 4096}, "original_max_position_embeddings"),
    ({**MIXTRAL, "num_key_value_heads": 7}, "num_key_value_heads"),
    ({**DEEPSEEK_V3, "num_experts_per_tok": 200}, "num_experts_per_tok"),
    ({"model_type": "kimi_k25", "hidden_act": "silu", "text_config": {**DEEPSEEK_V3, "hidden_act": "x"}}, "hidden_act"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "key"), REFUSED_FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_import_ends_in_2_where_check_would_refuse_and_says_where(
    config: Config, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "model", config)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(folder)])
    assert ended.value.code == 2
    lines = (folder / "config.json").read_text().splitlines()
    number = max(index for index, line in enumerate(lines, 1) if f'"{key}"' in line)
    shown = capsys.readouterr().err
    assert f"config.json:{number}:" in shown and f"{number} | " in shown


def test_a_context_that_was_cut_keeps_its_frequencies(tmp_path: Path) -> None:
    """The cure is a longer context, never another length before the stretch."""
    with pytest.raises(DscError) as caught:
        import_path(written(tmp_path, {**LLAMA, "max_position_embeddings": 4096}))
    (finding,) = caught.value.findings
    assert finding.code == "DSC053" and finding.help is not None and "max_position_embeddings: 8192" in finding.help
    assert "at most" not in finding.help
