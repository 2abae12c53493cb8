"""Generation with caches equals the full forward: token by token, in chunks, and whole prompts."""

import pytest
import torch
from decoding import chunk_logits
from numerics.checks import decode_error
from numerics.families import CASES, LENGTH, Case
from numerics.harness import Compile, OracleOf, imported_text, random_model, some_tokens
from numerics.specs import SPECS

from dsc.compiler.driver import build
from dsc.compiler.graph.cache_rows import cache_rows

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
WINDOWED = [case for case in CASES if case.family in ("qwen3", "mistral") and "window" in case.variant] + [
    Case("mistral", f"window_of_{window}", {"sliding_window": window}) for window in (1, 5, 7)
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


@pytest.mark.parametrize("case", WINDOWED, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_windows(case: Case, chunks: list[int], oracle_of: OracleOf, compiled: Compile) -> None:
    """Windows of 1 token, of a few, of a chunk, of the whole text and of more: rows are overwritten or not."""
    assert decode_error(compiled(imported_text(oracle_of(case))), chunks) < TOLERANCE


def test_layers_that_take_turns(compiled: Compile) -> None:
    """Windows, latents, two ropes, and feed-forwards with and without a loss, in one loop."""
    for chunks in CHUNKS.values():
        assert decode_error(compiled(SPECS["layers_in_turn"]), chunks) < TOLERANCE


def test_caches_hold_what_the_plan_counts(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    """Bytes of a token in the pages of each layer."""
    package = compiled(imported_text(oracle_of(family)))
    engine = package.engine.Engine(random_model(package, torch.float32))
    page_size = package.importer("infer.cache").PAGE_SIZE
    planned = cache_rows(build(package.spec).training, "Model.forward")
    assert len(planned) == len(engine.caches)
    for rows, cache in zip(planned.values(), engine.caches, strict=True):
        assert cache[0].nbytes == page_size * sum(row.bytes for row in rows)


def test_decoding_leaves_the_model_alone(compiled: Compile) -> None:
    package = compiled(SPECS["everything"])
    model = random_model(package)
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    chunk_logits(package.importer, model, some_tokens(), CHUNKS["chunks"])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name]), f"{name}: generation counts no load and moves no bias"
