"""The model types that can be imported, with the names and defaults of their configuration classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dsc.compiler.hf.families import FAMILIES, Family
from dsc.compiler.hf.quantization import read_linear
from dsc.compiler.hf.reader import ConfigReader
from dsc.compiler.hf.sections import (
    Sections,
    read_deepseek_v2,
    read_deepseek_v3,
    read_llama,
    read_minicpm3,
    read_mistral,
    read_mixtral,
    read_qwen3,
    read_qwen3_moe,
)
from dsc.spec.workload import Workload

_SEQUENCE_LENGTH = Workload().sequence_length
_NO_BIAS = "the language has no biases in projections"

# Bookkeeping, generation and logging: nothing here changes logits or losses.
_NEUTRAL_KEYS = (
    *("_name_or_path", "auto_map", "model_type", "transformers_version", "use_cache", "pretraining_tp", "ep_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "return_dict", "output_hidden_states", "output_attentions"),
    *("id2label", "label2id", "problem_type", "is_encoder_decoder", "chunk_size_feed_forward", "tokenizer_class"),
)


@dataclass(frozen=True)
class ImportedType:
    family: Family
    read_sections: Callable[[ConfigReader], Sections]
    """What the types do not share: attention, ffn, layers, mtp and multipliers."""
    aliases: Mapping[str, str]
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def read(self, config: ConfigReader) -> Sections:
        """All of the spec but its name."""
        self._refuse_what_no_type_has(config)
        spec: Sections = {
            "vocab_size": config.integer("vocab_size"),
            "hidden_size": config.integer("hidden_size"),
            "max_position_embeddings": config.integer("max_position_embeddings"),
            "norm": {"eps": config.number("rms_norm_eps", self.rms_norm_eps)},
        }
        if config.flag("tie_word_embeddings", self.tie_word_embeddings):
            spec["tie_word_embeddings"] = True
        initializer_range = config.number("initializer_range", self.initializer_range)
        if initializer_range != 0.02:
            spec["initializer_range"] = initializer_range
        if precision := _precision(config):
            spec["precision"] = precision
        if config.integer("max_position_embeddings") < _SEQUENCE_LENGTH:
            spec["workload"] = {"sequence_length": config.integer("max_position_embeddings")}
        return spec | self.read_sections(config)

    def _refuse_what_no_type_has(self, config: ConfigReader) -> None:
        config.ignore(*_NEUTRAL_KEYS)
        config.only("architectures", ([self.family.architecture],), f"known is {self.family.architecture}")
        config.only("hidden_act", ("silu", "swish"), "feed-forwards are SwiGLU")
        config.only("attention_bias", (False,), _NO_BIAS)
        config.only("mlp_bias", (False,), _NO_BIAS)
        config.only("attention_dropout", (0,), "the language has no dropout")


def _precision(config: ConfigReader) -> Sections:
    precision: Sections = {}
    config.only("dtype", ("bfloat16", "float32"), "parameters are bfloat16 or float32")
    if config.text("dtype", "bfloat16") == "float32":
        precision |= {"parameters": "fp32", "kv_cache": "fp32"}
    if linear := read_linear(config):
        precision["linear"] = linear
    return precision


_DTYPE = {"torch_dtype": "dtype"}
_MTP = {"num_mtp_layers": "num_nextn_predict_layers"}

_DEEPSEEK_V3 = ImportedType(
    FAMILIES["deepseek_v3"], read_deepseek_v3, {**_DTYPE, **_MTP, "num_local_experts": "n_routed_experts"}
)

MODEL_TYPES: dict[str, ImportedType] = {
    "deepseek_v2": ImportedType(
        FAMILIES["deepseek_v2"], read_deepseek_v2, {**_DTYPE, "num_experts": "n_routed_experts"}
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "minicpm3": ImportedType(
        FAMILIES["minicpm3"],
        read_minicpm3,
        _DTYPE,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tie_word_embeddings=True,
    ),
    "llama": ImportedType(FAMILIES["llama"], read_llama, _DTYPE),
    "mixtral": ImportedType(
        FAMILIES["mixtral"], read_mixtral, {**_DTYPE, "num_experts": "num_local_experts"}, rms_norm_eps=1e-5
    ),
    "qwen3_moe": ImportedType(FAMILIES["qwen3_moe"], read_qwen3_moe, {**_DTYPE, "num_experts": "num_local_experts"}),
    "qwen3": ImportedType(FAMILIES["qwen3"], read_qwen3, _DTYPE),
    "mistral": ImportedType(FAMILIES["mistral"], read_mistral, _DTYPE),
}
