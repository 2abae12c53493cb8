"""The model types that can be imported, with the names and defaults of their configuration classes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dsc.compiler.hf.families import FAMILIES, Family
from dsc.compiler.hf.quantization import read_linear
from dsc.compiler.hf.reader import ConfigReader
from dsc.compiler.hf.sections import (
    Sections,
    read_deepseek_v2,
    read_deepseek_v3,
    read_glm4_moe_lite,
    read_llama,
    read_minicpm3,
    read_mistral,
    read_mixtral,
    read_qwen2,
    read_qwen3,
    read_qwen3_moe,
    read_youtu,
)
from dsc.compiler.hf.tokens import read_tokens
from dsc.spec.workload import Workload

_SEQUENCE_LENGTH = Workload().sequence_length
_NO_BIAS = "no projections have biases, except those to queries, keys and values in qwen2"

# Bookkeeping, generation and logging: nothing here changes logits or losses.
_NEUTRAL_KEYS = (
    *("_name_or_path", "name_or_path", "auto_map", "model_type", "transformers_version", "ep_size"),
    *("pretraining_tp", "return_dict", "output_hidden_states", "output_attentions", "tokenizer_class"),
    *("id2label", "label2id", "num_labels", "problem_type", "is_encoder_decoder", "chunk_size_feed_forward"),
    *("_commit_hash", "_attn_implementation_autoset", "attn_implementation", "_attn_implementation", "torchscript"),
    *("transformers.js_config", "unsloth_fixed", "unsloth_version", "finetuning_task", "task_specific_params"),
    *("tf_legacy_loss", "use_bfloat16", "remove_invalid_values", "pruned_heads", "prefix"),
)

# Settings of generation that older versions wrote into config.json.
_GENERATION_KEYS = (
    *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
    *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens"),
    *("begin_suppress_tokens", "exponential_decay_length_penalty", "decoder_start_token_id", "sep_token_id"),
)


@dataclass(frozen=True)
class ImportedType:
    family: Family
    read_sections: Callable[[ConfigReader], Sections]
    """What the types do not share: attention, ffn, layers, mtp and multipliers."""
    aliases: Mapping[str, str]
    rms_norm_eps: float = 1e-6
    initializer_range: float | None = 0.02
    """None: 2 / sqrt(5 hidden_size), also where it is null."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    tie_word_embeddings: bool = False
    architecture: str | None = None
    """Where it is not the family's."""

    def read(self, config: ConfigReader) -> Sections:
        """All of the spec but its name."""
        self._refuse_what_no_type_has(config)
        spec: Sections = {
            "vocab_size": config.integer("vocab_size"),
            "hidden_size": config.integer("hidden_size"),
            "max_position_embeddings": config.integer("max_position_embeddings"),
            "norm": {"eps": config.number("rms_norm_eps", self.rms_norm_eps)},
        }
        if tokens := read_tokens(config, self.tokens):
            spec["tokens"] = tokens
        if config.flag("tie_word_embeddings", self.tie_word_embeddings):
            spec["tie_word_embeddings"] = True
        youtu_range = 2 / math.sqrt(5 * max(config.integer("hidden_size"), 1))
        null = youtu_range if self.initializer_range is None else None
        initializer_range = config.number("initializer_range", self.initializer_range or youtu_range, null=null)
        if initializer_range != 0.02:
            spec["initializer_range"] = initializer_range
        if precision := _precision(config):
            spec["precision"] = precision
        if config.integer("max_position_embeddings") < _SEQUENCE_LENGTH:
            spec["workload"] = {"sequence_length": config.integer("max_position_embeddings")}
        return spec | self.read_sections(config)

    def _refuse_what_no_type_has(self, config: ConfigReader) -> None:
        config.ignore(*_NEUTRAL_KEYS, *_GENERATION_KEYS)
        config.flag("use_cache", True)
        for key in ("add_cross_attention", "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size"):
            config.only(key, (False, None), "the language has decoders of their own only")
        architecture = self.architecture or self.family.architecture
        config.only("architectures", ([architecture], None), f"known is {architecture}")
        config.only("hidden_act", ("silu", "swish"), "feed-forwards are SwiGLU")
        config.only("attention_bias", (False,), _NO_BIAS)
        config.only("mlp_bias", (False,), _NO_BIAS)
        config.only("attention_dropout", (0,), "the language has no dropout")


def _precision(config: ConfigReader) -> Sections:
    precision: Sections = {}
    config.only("dtype", ("bfloat16", "float32", None), "parameters are bfloat16 or float32")
    if config.text("dtype", "bfloat16", null="bfloat16") == "float32":
        precision |= {"parameters": "fp32", "kv_cache": "fp32"}
    if linear := read_linear(config):
        precision["linear"] = linear
    return precision


def _tokens(bos: int, eos: int) -> dict[str, int]:
    return {"bos_token_id": bos, "eos_token_id": eos}


_DTYPE = {"torch_dtype": "dtype"}
_MTP = {"num_mtp_layers": "num_nextn_predict_layers"}

_DEEPSEEK_V3 = ImportedType(
    FAMILIES["deepseek_v3"],
    read_deepseek_v3,
    {**_DTYPE, **_MTP, "num_local_experts": "n_routed_experts"},
    tokens=_tokens(0, 1),
)

MODEL_TYPES: dict[str, ImportedType] = {
    "deepseek_v2": ImportedType(
        FAMILIES["deepseek_v2"],
        read_deepseek_v2,
        {**_DTYPE, "num_experts": "n_routed_experts"},
        tokens=_tokens(1, 2),
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": ImportedType(
        FAMILIES["deepseek_v3"],
        read_glm4_moe_lite,
        {**_DTYPE, **_MTP, "num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
        rms_norm_eps=1e-5,
        tokens=_tokens(0, 1),
        architecture="Glm4MoeLiteForCausalLM",
    ),
    "youtu": ImportedType(
        FAMILIES["deepseek_v3"],
        read_youtu,
        _DTYPE,
        initializer_range=None,
        tie_word_embeddings=True,
        tokens=_tokens(128000, 128001),
        architecture="YoutuForCausalLM",
    ),
    "minicpm3": ImportedType(
        FAMILIES["minicpm3"],
        read_minicpm3,
        _DTYPE,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tokens=_tokens(1, 2),
        tie_word_embeddings=True,
    ),
    "llama": ImportedType(FAMILIES["llama"], read_llama, _DTYPE, tokens=_tokens(1, 2)),
    "mixtral": ImportedType(
        FAMILIES["mixtral"],
        read_mixtral,
        {**_DTYPE, "num_experts": "num_local_experts"},
        rms_norm_eps=1e-5,
        tokens=_tokens(1, 2),
    ),
    "qwen3_moe": ImportedType(FAMILIES["qwen3_moe"], read_qwen3_moe, {**_DTYPE, "num_experts": "num_local_experts"}),
    "qwen3": ImportedType(FAMILIES["qwen3"], read_qwen3, _DTYPE),
    "qwen2": ImportedType(FAMILIES["qwen2"], read_qwen2, _DTYPE),
    "mistral": ImportedType(FAMILIES["mistral"], read_mistral, _DTYPE, tokens=_tokens(1, 2)),
}

ALIASES = frozenset(pair for model_type in MODEL_TYPES.values() for pair in model_type.aliases.items())
"""Every (alias, name) that some type has."""
