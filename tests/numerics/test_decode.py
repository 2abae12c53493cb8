"""Generation with caches equals the full forward: token by token, in chunks, and whole prompts."""

import pytest
import torch
from decoding import chunk_logits
from numerics.checks import decode_error
from numerics.families import CASES, LENGTH, Case
from numerics.harness import Compile, OracleOf, imported_text, random_model, some_tokens
from numerics.specs import SPECS

TOLERANCE = 1e-12
CHUNKS = {
    "token_by_token": [1] * LENGTH,
    "whole_prompt": [LENGTH],
    "prompt_then_tokens": [LENGTH - 4, 1, 1, 1, 1],
    "chunks": [5, 7, 1, 6, 2],
}
WITHOUT_TRANSFORMERS = [
    "latent_eps_unlike_norm_eps",
    "dense_after_moe",
    "experts_beside_grouped_attention",
    "multipliers",
    "everything",
]
VARIANTS = [
    case
    for case in CASES
    if case.variant in ("values_wider_than_keys", "values_as_wide_as_keys", "no_query_latent", "one_kv_head", "tied")
]


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_families(family: Case, chunks: list[int], oracle_of: OracleOf, compiled: Compile) -> None:
    assert decode_error(compiled(imported_text(oracle_of(family))), chunks) < TOLERANCE


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_variants(case: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    assert decode_error(compiled(imported_text(oracle_of(case))), CHUNKS["chunks"]) < TOLERANCE


@pytest.mark.parametrize("name", WITHOUT_TRANSFORMERS)
def test_specs(name: str, compiled: Compile) -> None:
    assert decode_error(compiled(SPECS[name]), CHUNKS["chunks"]) < TOLERANCE


def test_caches_hold_what_the_plan_counts(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    """Latents and one rotary key for latent attention, keys and values of the shared heads otherwise."""
    package = compiled(imported_text(oracle_of(family)))
    attention = package.spec.attention
    if attention.kind == "mla":
        width = attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        width = 2 * attention.num_key_value_heads * attention.head_dim
    caches = package.engine.Engine(random_model(package)).caches
    assert len(caches) == package.spec.num_layers and {cache.shape[-1] for cache in caches} == {width}


def test_decoding_leaves_the_model_alone(compiled: Compile) -> None:
    package = compiled(SPECS["everything"])
    model = random_model(package)
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    chunk_logits(package.importer, model, some_tokens(), CHUNKS["chunks"])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name]), f"{name}: generation counts no load and moves no bias"
