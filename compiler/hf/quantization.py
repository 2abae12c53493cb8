"""Block-scaled FP8 weights: quantization_config and the spec's precision.linear."""

import re

from dsc.compiler.hf.reader import ConfigReader
from dsc.spec.precision import Bf16Linear, Fp8BlockLinear
from dsc.spec.words import shown

# What the language never has in FP8.
_KEPT = re.compile(
    r"(model\.)?(layers\.\d+\.)?(self_attn\.|mlp\.|block_sparse_moe\.)?"
    r"(lm_head|embed_tokens|gate|e_score_correction_bias|rotary_emb|eh_proj|enorm|hnorm|shared_head(\.(head|norm))?"
    r"|norm|input_layernorm|post_attention_layernorm|q_norm|k_norm|q_a_layernorm|kv_a_layernorm)(\.weight)?"
)

_HELP = "the language has FP8 E4M3 in blocks, with activations scaled as they come"


def read_linear(config: ConfigReader) -> dict[str, object] | None:
    """None where the weights are not quantised."""
    quantization = config.section("quantization_config")
    if quantization is None:
        return None
    if quantization.text("quant_method", "") != "fp8":
        quantization.refuse("quant_method", "this way of quantising is not supported", _HELP)
        return None
    quantization.only("activation_scheme", ("dynamic",), _HELP)
    quantization.only("fmt", ("e4m3", None), _HELP)
    quantization.only("scale_fmt", ("ue8m0", "float", None), "scales are float32 or ue8m0")
    _read_modules(quantization)
    quantization.only("dequantize", (False, None), "leave quantization_config out to have the weights in bfloat16")
    block = quantization.integers("weight_block_size")
    if len(block) != 2:
        quantization.refuse("weight_block_size", "weights without two-dimensional blocks are not supported", _HELP)
        return None
    scale = "ue8m0" if quantization.text("scale_fmt", "float", null="float") == "ue8m0" else "float32"
    quantization.refuse_unknown()
    return {"kind": "fp8_block", "weight_block": block, "activation_block": [1, block[1]], "scale": scale}


def _read_modules(quantization: ConfigReader) -> None:
    """Modules left out of FP8: those that are no projections of a layer may be named, abridged or in full."""
    quantization.ignore("modules_to_not_convert")
    for module in quantization.texts("modules_to_not_convert"):
        if not _KEPT.fullmatch(module):
            message = f"modules_to_not_convert names {shown(module)}, which is in FP8"
            quantization.refuse("modules_to_not_convert", message, "every projection of a layer is in FP8")


def write_linear(linear: Bf16Linear | Fp8BlockLinear) -> dict[str, object]:
    """The keys of the config, none for bfloat16."""
    if isinstance(linear, Bf16Linear):
        return {}
    quantization = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
    if linear.scale == "ue8m0":
        quantization["scale_fmt"] = "ue8m0"
    return {"quantization_config": quantization | {"weight_block_size": linear.weight_block}}
