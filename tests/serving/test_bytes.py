"""What the engine keeps and reads of DeepSeek-V3: the plan's bytes on tensors, and where expanding latents pays."""

from collections import Counter

import pytest
import torch
from numerics.harness import Package, import_package

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.dim import Dim, Int, total
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.paged import GatherRope
from dsc.compiler.passes.serve import FORWARD
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


def weights_read(serving: Graph, key: str) -> Dim:
    """Bytes of weights that one new token reads in a block and all that it calls, prepared ones and the model's own."""
    block, read = serving.blocks[key], total([])
    for node in block.nodes():
        if isinstance(node.op, Call):
            bindings = node.op.bindings(node.input_types)
            for callee, count in Counter(callee for callee, _ in node.op.runs()).items():
                read += weights_read(serving, callee).substitute(bindings) * count
        elif node.op.op_class is not OpClass.LOOKUP and not isinstance(node.op, GatherRope):  # they read a row
            prepared = [value.type for value in node.inputs if value in block.prepared]
            types = [*prepared, *(parameter.type for parameter in node.op.parameters())]
            size = total([type.bytes for type in types if isinstance(type, TensorType)])
            read += size // (256 // 8) if node.op.op_class is OpClass.GROUPED_PRODUCT else size
    return read


def test_a_step_reads_each_weight_once_and_in_its_narrowest_form(v3: Package) -> None:
    """One token of DeepSeek-V3: in FP8 what its recipe has in FP8 (section 3.3.1), a byte each; in bfloat16 the up
    projections of the latent, which are multiplied by views of a weight, the router and the head."""
    attention = 7168 * 1536 + 1536 * 24_576 + 7168 * 576 + 16_384 * 7168 + 2 * 512 * 32_768
    dense, mixture = 3 * 7168 * 18_432, 9 * 3 * 7168 * 2048 + 2 * 256 * 7168
    floor = 61 * attention + 3 * dense + 58 * mixture + 2 * 7168 * 129_280
    read = weights_read(build(load("deepseek-v3")).serving, FORWARD).value()
    assert floor <= read <= 1.01 * floor, read / floor
