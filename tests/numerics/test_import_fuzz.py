"""Random configs of every model type: what dsc imports computes what transformers computes, or it is refused.

Keys are left out, null, or have other values and spellings. Null that transformers refuses or falls over is refused.
"""

import copy
import itertools
import json
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.families import BASES, LLAMA3, YARN
from numerics.harness import Package, compile_package, randomise, relative_error, some_tokens
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from dsc.compiler.hf import import_config
from dsc.compiler.hf.model_types import MODEL_TYPES
from dsc.spec.checks import check
from dsc.spec.errors import DscError
from dsc.spec.model import ModelSpec

Config = dict[str, Any]

LATENT_V3 = {key: value for key, value in BASES["deepseek_v3"].items() if key != "first_k_dense_replace"}
BASE: dict[str, Config] = {
    **{name: dict(config) for name, config in BASES.items()},
    "glm4_moe_lite": {**LATENT_V3, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "youtu": {
        **{key: value for key, value in BASES["minicpm3"].items() if not key.startswith(("scale", "dim_model"))},
        "rope_scaling": YARN,
    },
}
PLAIN_YARN = {key: value for key, value in YARN.items() if not key.startswith("mscale")}
ROPES: list[object] = [
    None,
    {},
    {"rope_type": "default"},
    {"type": "linear", "factor": 1.0},
    {"rope_type": "linear", "factor": 2.0},
    {"type": "dynamic", "factor": 1.0},
    LLAMA3,
    YARN,
    PLAIN_YARN,
    *({**YARN, key: None} for key in YARN),
    *({**LLAMA3, key: None} for key in LLAMA3),
    {**PLAIN_YARN, "truncate": False},
    {**PLAIN_YARN, "truncate": None},
    {**PLAIN_YARN, "attention_factor": 1.2},
    {**PLAIN_YARN, "attention_factor": None},
    {**YARN, "rope_type": "yarn", "rope_theta": 50.0},
    {**YARN, "mscale": 0.5, "mscale_all_dim": 0.0},
    {**LLAMA3, "partial_rotary_factor": 1.0},
    {**PLAIN_YARN, "partial_rotary_factor": 0.5},
]
VALUES: dict[str, list[object]] = {
    "attention_bias": [False, True],
    "attention_dropout": [0, 0.0, 0.1],
    "decoder_sparse_step": [1, 2, 0],
    "dim_model_base": [4, 32],
    "dtype": ["float32", "bfloat16", "float16"],
    "first_k_dense_replace": [0, 1, 2, 5],
    "head_dim": [8, 6, 10],
    "hidden_act": ["silu", "swish", "gelu"],
    "initializer_range": [0.02, 0.1],
    "is_llama_config": [True, False],
    "max_window_layers": [2],
    "mlp_bias": [False, True],
    "mlp_layer_types": [["dense", "sparse", "dense"], ["sparse"] * 3, ["dense"] * 3, ["dense"], ["other"] * 3],
    "mlp_only_layers": [[], [1], [0, 2]],
    "moe_layer_freq": [1, 2],
    "n_group": [1, 2, 4, 8],
    "n_shared_experts": [0, 1, 2],
    "norm_topk_prob": [True, False],
    "num_experts_per_tok": [1, 2, 3, 4],
    "num_hidden_layers": [1, 2],
    "num_key_value_heads": [1, 2, 4],
    "num_nextn_predict_layers": [0, 1],
    "output_router_logits": [False],
    "partial_rotary_factor": [1.0, 0.5],
    "pretraining_tp": [1, 2],
    "q_lora_rank": [12],
    "qk_head_dim": [20, 7],
    "qk_nope_head_dim": [8],
    "qk_rope_head_dim": [4],
    "qkv_bias": [False, True],
    "rms_norm_eps": [1e-5, 1e-2],
    "rope_interleave": [True, False],
    "rope_interleaved": [False],
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
    "rope_theta": [10000.0, 50, 1e6],
    "routed_scaling_factor": [1.0, 2.5, 4.0],
    "router_jitter_noise": [0.0],
    "scale_depth": [1.4, 2],
    "scale_emb": [1, 12.0],
    "scoring_func": ["softmax", "sigmoid"],
    "shared_expert_intermediate_size": [0, 8],
    "sliding_window": [4, 64],
    "tie_word_embeddings": [True, False],
    "topk_group": [1, 2, 4],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "torch_dtype": ["float32", "bfloat16"],
    "use_cache": [True, False],
    "use_qk_norm": [True, False],
    "use_sliding_window": [False, True],
    "v_head_dim": [8, 20],
}
# What may stand in a config of any type, whether the type's class has it or not.
EVERYWHERE = (
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "dtype", "head_dim", "qk_head_dim"),
    *("sliding_window", "num_nextn_predict_layers", "scoring_func", "qkv_bias", "moe_layer_freq", "is_llama_config"),
    *("use_qk_norm", "shared_expert_intermediate_size", "mlp_bias", "first_k_dense_replace", "topk_method"),
)


def drawn(model_type: str, seed: int) -> tuple[Config, list[str]]:
    """A config of the type with one to four keys changed, and which."""
    dice = random.Random(seed)
    config = copy.deepcopy(BASE[model_type])
    keys = sorted(
        {*config, *EVERYWHERE, *(VALUES.keys() & CONFIG_MAPPING[model_type].__annotations__)} - {"vocab_size"}
    )
    changed = dice.sample(keys, dice.randint(1, 4))
    for key in changed:
        choices: list[Any] = [None, *VALUES.get(key, [])]
        if dice.random() < 0.2:
            config.pop(key, None)
        else:
            config[key] = copy.deepcopy(dice.choice(choices))
    for alias, name in MODEL_TYPES[model_type].aliases.items():
        if name in config and dice.random() < 0.2:
            config[alias] = config.pop(name)
    return config, changed


def imported(config: Config) -> ModelSpec | None:
    """None where it is refused."""
    try:
        spec = ModelSpec.model_validate(import_config(config, "fuzz"))
    except DscError:
        return None
    return None if check(spec) else spec


def theirs(config: Config, tokens: Tensor, folder: Path) -> Tensor | None:
    """The logits of transformers, whose weights then are in the folder; None where it refuses or falls over."""
    try:
        given = AutoConfig.for_model(**copy.deepcopy(config))
        eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = AutoModelForCausalLM.from_config(given, dtype=torch.float32, **eager)
        randomise(model)
        logits: Tensor = model.eval()(tokens, use_cache=False).logits
    except Exception:
        return None
    model.save_pretrained(folder)
    return logits


class Fuzz:
    """Packages by their spec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages: dict[str, Package] = {}
        self.numbers = itertools.count()

    def attempt(self, model_type: str, seed: int) -> str:
        config, changed = drawn(model_type, seed)
        spec = imported({"model_type": model_type, **config})
        if spec is None:
            return "refused"
        tokens = some_tokens(1)
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multi-token prediction is not there
            expected = theirs({"model_type": model_type, **config}, tokens, Path(name))
            if expected is None:
                without = {key: value for key, value in config.items() if key not in changed or value is not None}
                stumbles = theirs({"model_type": model_type, **without}, tokens, Path(name)) is None
                assert stumbles, ("transformers refuses a null that dsc takes", model_type, config, changed)
                return "ours alone"
            logits = self.package(spec).load(Path(name))(tokens)
        error = relative_error(logits, expected)
        assert error < 1e-5, (error, model_type, {key: config.get(key, "absent") for key in changed})
        return "equal"

    def package(self, spec: ModelSpec) -> Package:
        precision = {"parameters": "fp32", "kv_cache": "fp32"}
        text = json.dumps({**spec.model_dump(mode="json", exclude={"precision"}), "precision": precision})
        if text not in self.packages:
            self.packages[text] = compile_package(text, self.folder / str(next(self.numbers)))
        return self.packages[text]


def fuzz(folder: Path, cases: int) -> dict[str, Counter[str]]:
    """What came of the configs of each type."""
    fuzz = Fuzz(folder)
    outcomes: dict[str, Counter[str]] = {model_type: Counter() for model_type in sorted(BASE)}
    for seed, model_type in zip(range(cases), itertools.cycle(outcomes)):
        outcomes[model_type][fuzz.attempt(model_type, seed)] += 1
    for model_type, counts in outcomes.items():
        print(f"{model_type:<14}", *(f"{count:>4} {outcome}" for outcome, count in sorted(counts.items())))
    return outcomes


def test_every_type_is_drawn() -> None:
    assert BASE.keys() == MODEL_TYPES.keys() - {"kimi_k2"}  # DeepSeek-V3 by another name, unknown to transformers


def test_what_is_imported_computes_the_same(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 16)
    assert sum(outcomes.values(), Counter())["equal"] >= 3


@pytest.mark.slow
def test_five_hundred_configs(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 500)
    for model_type, counts in outcomes.items():
        assert counts["equal"] >= 5 and counts["refused"] >= 5, (model_type, counts)
