"""What the engine keeps and reads of DeepSeek-V3: the plan's bytes on tensors, and where expanding latents pays."""

import pytest
import torch
from numerics.harness import Package, import_package

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.dim import Int
from dsc.spec.loader import load


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Package:
    spec = load("deepseek-v3").model_copy(update={"cluster": None})
    folder = tmp_path_factory.mktemp("v3") / spec.package_name
    write(emit(build(spec)), folder)
    return import_package(spec, folder)


def test_cache_bytes_of_a_token_are_the_plan_s(v3: Package) -> None:
    """70,272 of the layers, and 1,152 of the layer that guesses."""
    *layers, guessing = v3.importer("infer.decode").empty_caches(2, torch.empty(0, dtype=torch.bfloat16))
    page_size = v3.importer("infer.cache").PAGE_SIZE
    counted = [sum(cache[0].nbytes for cache in layers) // page_size, guessing[0].nbytes // page_size]
    stats = compute_stats(v3.spec, build(v3.spec).training)
    assert counted == [stats.kv_cache_bytes_per_token, stats.kv_cache_bytes_per_token_mtp] == [70_272, 1_152]


@pytest.mark.parametrize("seen", [1, 16, 171, 172, 1000, 4096, 131_072])
def test_the_choice_of_form_is_that_of_fewer_operations(v3: Package, seen: int) -> None:
    """Of the graph's own count of both blocks, at and around the number of new tokens where they meet."""
    blocks = build(v3.spec).serving
    for new in {1, 2, seen // 2, seen, *range(140, 176)}:
        if 1 <= new <= seen:
            sizes = {"B": Int(1), "S": Int(new), "C": Int(seen)}
            absorbed, expanded = (
                blocks.flops(f"LatentAttention.{form}").substitute(sizes).value() for form in ("absorbed", "expanded")
            )
            assert v3.importer("infer.decode").expands(new, seen) == (expanded <= absorbed), (new, seen)


def test_a_first_chunk_is_always_expanded_and_a_long_text_is_not(v3: Package) -> None:
    expands = v3.importer("infer.decode").expands
    assert all(expands(new, new) for new in (1, 7, 64, 4096))
    assert not expands(1, 2) and not expands(170, 131_072) and expands(171, 131_072)
