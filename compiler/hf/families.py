"""The Hugging Face model types that specs can be, and what each calls its tensors on disk."""

from dataclasses import dataclass

from dsc.compiler.hf.fits import ModelType, objections
from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class CheckpointNames:
    """Where the model types differ; all other names are the same in each. `moe_block` is below model.layers.N."""

    moe_block: str = "mlp"
    expert_gate: str = "gate_proj"
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"
    gate: str = "gate.weight"
    selection_bias: str = "gate.e_score_correction_bias"


@dataclass(frozen=True)
class Family:
    model_type: ModelType
    architecture: str
    names: CheckpointNames = CheckpointNames()


# As save_pretrained writes them: transformers 5 fuses experts in memory only.
_MIXTRAL_NAMES = CheckpointNames(moe_block="block_sparse_moe", expert_gate="w1", expert_up="w3", expert_down="w2")

FAMILIES: dict[ModelType, Family] = {
    "deepseek_v2": Family("deepseek_v2", "DeepseekV2ForCausalLM"),
    "deepseek_v3": Family("deepseek_v3", "DeepseekV3ForCausalLM"),
    "minicpm3": Family("minicpm3", "MiniCPM3ForCausalLM"),
    "llama": Family("llama", "LlamaForCausalLM"),
    "mixtral": Family("mixtral", "MixtralForCausalLM", _MIXTRAL_NAMES),
    "qwen3_moe": Family("qwen3_moe", "Qwen3MoeForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM"),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "mistral": Family("mistral", "MistralForCausalLM"),
}


def family(spec: ModelSpec) -> Family | None:
    """The model type that computes what the spec says, None where there is none."""
    return next((one for one in FAMILIES.values() if not objections(spec, one.model_type)), None)


def nearest_family(spec: ModelSpec) -> Family:
    """The model type to name in an error: same kinds of attention and layers first, then the fewest reasons against."""

    def distance(one: Family) -> tuple[int, int]:
        keys = [finding.key for finding in objections(spec, one.model_type)]
        return sum(key[-1:] in (("kind",), ("layers",)) for key in keys), len(keys)

    return min(FAMILIES.values(), key=distance)


def checkpoint_names(spec: ModelSpec) -> CheckpointNames:
    """Of the spec's model type; DeepSeek's where it has none."""
    found = family(spec)
    return found.names if found else CheckpointNames()
