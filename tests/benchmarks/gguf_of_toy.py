"""The toy of serving.py as a GGUF file for llama.cpp, float32 throughout, from the folder that save_pretrained wrote.

llama.cpp knows the architecture as `deepseek2`. It attends to latents, as one key head for all queries, so it wants
the two halves of kv_b_proj apart: the keys' half transposed, for queries, and the values' half as it is. Dimensions of
a GGUF tensor are listed from the last to the first, so a matrix [out, in] of the checkpoint is written as it stands.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
NAMES_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
} | {
    f"mlp.{theirs}{part}_proj": f"ffn_{part}{ours}"
    for theirs, ours in (("", ""), ("shared_experts.", "_shexp"))
    for part in ("gate", "up", "down")
}
Tensors = dict[str, np.ndarray]


def write_gguf(folder: Path, file: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "deepseek2")
    _write_keys(writer, config)
    for name, tensor in _tensors(load_file(folder / "model.safetensors"), config).items():
        assert tensor.dtype == np.float32, f"{name} is {tensor.dtype}"
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])

    latent, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rotary)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotary)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rotary)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])

    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])


def _tensors(theirs: Tensors, config: dict[str, Any]) -> Tensors:
    """Takes from the checkpoint's tensors until none is left."""
    found = {f"{ours}.weight": theirs.pop(f"{name}.weight") for name, ours in NAMES.items()}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        of_layer = {name.removeprefix(prefix): theirs.pop(name) for name in list(theirs) if name.startswith(prefix)}
        found |= {f"blk.{layer}.{name}": tensor for name, tensor in _tensors_of_layer(of_layer, config).items()}
    assert not theirs, f"without a name in GGUF: {sorted(theirs)}"
    return found


def _tensors_of_layer(theirs: Tensors, config: dict[str, Any]) -> Tensors:
    heads, nope, latent = config["num_attention_heads"], config["qk_nope_head_dim"], config["kv_lora_rank"]
    by_head = theirs.pop("self_attn.kv_b_proj.weight").reshape(heads, -1, latent)
    found = {"attn_k_b.weight": by_head[:, :nope].transpose(0, 2, 1), "attn_v_b.weight": by_head[:, nope:]}
    if "mlp.gate.weight" in theirs:
        found["exp_probs_b.bias"] = theirs.pop("mlp.gate.e_score_correction_bias")
        for part in ("gate", "up", "down"):
            experts = [
                theirs.pop(f"mlp.experts.{expert}.{part}_proj.weight") for expert in range(config["n_routed_experts"])
            ]
            found[f"ffn_{part}_exps.weight"] = np.stack(experts)
    return found | {f"{NAMES_IN_LAYER[name.removesuffix('.weight')]}.weight": tensor for name, tensor in theirs.items()}
