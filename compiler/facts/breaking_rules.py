"""The rules of `dsc breaking`: a page for each code. A code, once published, keeps its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Category = Literal["checkpoint", "meaning", "python", "plan"]
CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True)
class Rule:
    category: Category
    title: str
    text: str
    example: str
    """A change of a spec that breaks it."""


RULES: dict[str, Rule] = {
    "BRK101": Rule(
        "checkpoint",
        "tensors that NEW does not have",
        "A checkpoint of OLD holds tensors that the model of NEW has no place for; load_hf raises and names them. "
        "So it is with a head of its own that NEW ties to the embedding, unless the two are equal.",
        "layers: [{repeat: 4, ffn: moe}] -> layers: [{repeat: 3, ffn: moe}]",
    ),
    "BRK102": Rule(
        "checkpoint",
        "tensors that OLD does not have",
        "The model of NEW needs tensors that a checkpoint of OLD lacks; load_hf raises and names them. Multi-token "
        "prediction is no such case: where a checkpoint lacks it, load_hf warns and leaves it as it was drawn.",
        "attention: {qk_norm: null} -> attention: {qk_norm: {eps: 1.0e-6}}",
    ),
    "BRK103": Rule(
        "checkpoint",
        "tensors of another shape",
        "Tensors have their names in both and another shape; load_hf raises and names them.",
        "attention: {kv_lora_rank: 512} -> attention: {kv_lora_rank: 256}",
    ),
    "BRK104": Rule(
        "checkpoint",
        "tensors of another name on disk",
        "The parameters are the same, and their names in a checkpoint are not: those are the names of the Hugging Face "
        "model type that computes what a spec says, and NEW is of another type than OLD, or of none.",
        "mixtral-8x7b with norm_topk_prob: true -> false: no Mixtral any more, and its names are DeepSeek's",
    ),
    "BRK201": Rule(
        "meaning",
        "positions are encoded otherwise",
        "Weights load, and queries and keys are turned by other angles or in other pairs than those they learned.",
        "rope: {layout: interleaved} -> rope: {layout: half}",
    ),
    "BRK202": Rule(
        "meaning",
        "tokens are routed otherwise",
        "Weights load, and tokens go to other experts, or their outputs are added with other weights.",
        "router: {score: softmax} -> router: {score: sigmoid}",
    ),
    "BRK203": Rule(
        "meaning",
        "norms divide by something else",
        "Weights load, and the epsilon of a norm is another: little beside large activations, and never nothing.",
        "norm: {eps: 1.0e-6} -> norm: {eps: 1.0e-5}",
    ),
    "BRK204": Rule(
        "meaning",
        "activations are scaled or cut off otherwise",
        "Weights load, and a multiplier or a limit of activations is another.",
        "residual: {multiplier: 1.0} -> residual: {multiplier: 0.5}",
    ),
    "BRK205": Rule(
        "meaning",
        "the same tensors make another model",
        "Weights load, and another function is computed from them: heads are divided otherwise, or an attention or a "
        "feed-forward is of another kind.",
        "attention: {kind: window, window: 4096} -> attention: {kind: gqa}",
    ),
    "BRK301": Rule(
        "python",
        "the package has another name",
        "The package is named after the spec; `import` statements of its users name a package that is not there.",
        "name: my-model -> name: my-other-model",
    ),
    "BRK302": Rule(
        "python",
        "a module or a public name is gone",
        "A module, function, class or method of the package that others may import or call does not exist any more.",
        "mtp: {depth: 1} -> mtp: null",
    ),
    "BRK303": Rule(
        "python",
        "a call that was right is not",
        "A function has lost a parameter, has its parameters in another order, or needs one more.",
        "a parameter without a default is added to Engine.generate",
    ),
    "BRK401": Rule(
        "plan",
        "rows of the cache are others",
        "What a layer keeps of a token has another shape or type, so caches and prefixes that were stored do not fit.",
        "precision: {kv_cache: bf16} -> precision: {kv_cache: fp8}",
    ),
    "BRK402": Rule(
        "plan",
        "fewer positions",
        "Sequences that OLD takes are longer than NEW has positions for.",
        "max_position_embeddings: 8192 -> max_position_embeddings: 4096",
    ),
    "BRK403": Rule(
        "plan",
        "a plan has to be made again",
        "NEW needs more memory than OLD, or has other machines, another placement or another batch. A plan of OLD says "
        "nothing about it: run `dsc plan`.",
        "workload: {sequence_length: 4096} -> workload: {sequence_length: 8192}",
    ),
}
