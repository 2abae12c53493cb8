"""Ranks that write the same texts together, each with some heads, widths and tokens of the vocabulary."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.specs import BASE, GROUPED
from numerics.test_checkpoint import SINGLE, all_tensors, quantised
from safetensors.torch import save_file
from serving.test_ranks import MODELS, Sections, assert_clean, played_by, write_package, wrong

DENSE: Sections = {"ffn": {"dense": {"intermediate_size": 40}}, "layers": [{"repeat": 3, "ffn": "dense"}]}
EVEN: Sections = {"vocab_size": 84}
WINDOW: Sections = {**GROUPED, "kind": "window", "window": 4, "qkv_bias": True, "qk_norm": None}
DIVIDED: dict[str, Sections] = {
    "llama": {**BASE, **DENSE, **EVEN, "attention": GROUPED, "tie_word_embeddings": True},
    "windows": {**BASE, **DENSE, **EVEN, "attention": WINDOW},
    "mla": {**BASE, **DENSE, **EVEN},
    **{name: {**MODELS[name], **EVEN} for name in ("deepseek", "v2-lite", "mixtral")},
}
RANKS: dict[str, dict[str, int]] = {
    "windows": {"tp": 2},
    "mla": {"tp": 4},
    "deepseek": {"tp": 2, "ep": 4},
    "v2-lite": {"tp": 4, "ep": 4},
    "mixtral": {"tp": 2, "ep": 2},
}
CLOSE = 1e-5
"""Of logarithms of probabilities in float32."""


def assert_alike(found: Any, *scenes: str) -> None:
    assert not [text for scene in scenes for text in wrong(found, scene)]
    assert all(rank["pages"] for scene in scenes for rank in found[scene]), "every page is free at the end"


def test_two_ranks_write_dense_layers_together(tmp_path: Path) -> None:
    """Heads of queries, keys and values, the width, a tied vocabulary; prompts in parts, a text cancelled, an error."""
    found = played_by(DIVIDED["llama"], {"tp": 2}, ("dealt", "logprobs", "failing"), tmp_path)
    assert_alike(found, "dealt")
    assert max(found["logprobs"]) < CLOSE and len(found["logprobs"]) == 2
    assert found["failing"] == ["RankFailed: rank 1 failed: ValueError: planted", "ValueError: planted"]


def test_two_ranks_write_mixtures_together(tmp_path: Path) -> None:
    """Latents whole on both, tokens dealt to the experts of both, guesses, found prefixes."""
    found = played_by(DIVIDED["deepseek"], {"tp": 2, "ep": 2}, ("uneven", "logprobs"), tmp_path)
    assert_alike(found, "uneven")
    assert max(found["logprobs"]) < CLOSE and len(found["logprobs"]) == 2
    assert all(rank["guesses"] > 0 for rank in found["uneven"])


@pytest.mark.slow
@pytest.mark.parametrize("model", RANKS)
def test_other_models_and_groups_do(model: str, tmp_path: Path) -> None:
    """Biases and windows, four ranks, two groups of two with one that is idle; few pages, and a rank that fails."""
    scenes = ("uneven", "dealt", "crowded", "logprobs", "failing")
    found = played_by(DIVIDED[model], RANKS[model], scenes, tmp_path)
    assert_alike(found, "uneven", "dealt", "crowded")
    assert max(found["logprobs"]) < CLOSE
    groups = RANKS[model].get("ep", RANKS[model]["tp"]) // RANKS[model]["tp"]
    assert all((rank["idle"] > 10) == (groups > 1) for rank in found["uneven"][-RANKS[model]["tp"] :])
    *others, last = found["failing"]
    assert last == "ValueError: planted" and set(others) == {f"RankFailed: rank {len(others)} failed: {last}"}


FAULTS = {
    "a part of a sum is taken for it": ("infer/decode.py", "return add_up(out)", "return out"),
    "a dense layer keeps its part": ("infer/decode.py", "h = add_up(h)", "h = h"),
    "tokens of others have a row too": ("infer/decode.py", ".masked_fill(elsewhere.unsqueeze(-1), 0)", ""),
    "the vocabulary begins elsewhere": ("infer/decode.py", "tokens - dist.get_rank(Ranks.mates)", "tokens - 1"),
    "logits lie one above the other": ("infer/decode.py", ".transpose(0, 1).flatten(1)", ".reshape(len(x), -1)"),
    "tokens go to experts twice": ("infer/decode.py", "dist.get_rank(Ranks.mates) * size :", "0 :"),
    "a rank reads the part of another": ("checkpoint.py", "rank % TENSOR_RANKS", "0 * rank"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != file or source.count(text) == 1, f"{file} has no {text!r}"
        return source.replace(text, planted) if name == file else source

    found = played_by(DIVIDED["deepseek"], {"tp": 2, "ep": 2}, ("uneven",), tmp_path, plant, patience=15)
    assert wrong(found, "uneven")


Tensors = dict[str, torch.Tensor]


def parts_of(
    sections: Sections, folder: Path, package_at: Any, block: tuple[int, int] | None = None
) -> tuple[Any, ...]:
    """What each of four ranks read of a checkpoint, and what it says; with `block`, it has codes in FP8."""
    write_package({**sections, "serving": {"tp": 2, "ep": 4}}, "shared", folder)
    package = package_at(folder / "shared")
    checkpoint, share = package("checkpoint"), package("infer.share")
    whole = package("model").Model()
    checkpoint.save_hf(whole, folder)
    expected = dict(checkpoint.named_tensors(whole))
    if block is not None:
        stored, expected = quantised(all_tensors(folder), block)
        save_file(stored, folder / SINGLE)
    return [dict(checkpoint.named_tensors(share.load_share(folder, rank), rank)) for rank in range(4)], expected


def differing(parts: list[Tensors], expected: Tensors) -> list[str]:
    """Names whose parts, put together along the dim that is cut, are not what the checkpoint says."""
    wrong = []
    for name, tensor in expected.items():
        found = [part[name] for part in parts if name in part]
        if ".experts." not in name and found[0].shape != tensor.shape:
            dim = next(dim for dim, size in enumerate(tensor.shape) if size != found[0].shape[dim])
            found = [torch.cat(found[:2], dim), torch.cat(found[2:], dim)]
        copies = 1 if ".experts." in name else len(found)
        if len(found) != copies or not all(part.equal(tensor) for part in found):
            wrong.append(name)
    return wrong


CUT = re.compile(r"(embed_tokens|lm_head|q_b_proj|kv_b_proj|o_proj|layers\.0\.mlp\..*)\.weight$")


def test_each_rank_reads_its_part_and_all_that_is_not_divided(tmp_path: Path, package_at: Any) -> None:
    parts, expected = parts_of(DIVIDED["deepseek"], tmp_path, package_at)
    assert {name for part in parts for name in part} == expected.keys() and not differing(parts, expected)
    cut = {name for name in expected if parts[0].get(name, expected[name]).shape != expected[name].shape}
    assert cut == {name for name in expected if CUT.search(name)}


@pytest.mark.parametrize("block", [(16, 24), (7, 5)], ids=str)
def test_parts_of_weights_in_fp8_take_the_multipliers_of_their_blocks(
    block: tuple[int, int], tmp_path: Path, package_at: Any
) -> None:
    """Where parts begin inside a block too."""
    linear = {"kind": "fp8_block", "weight_block": list(block), "activation_block": [1, block[1]]}
    precision = {"precision": {"parameters": "fp32", "kv_cache": "fp32", "linear": linear}}
    parts, expected = parts_of({**DIVIDED["deepseek"], **precision}, tmp_path, package_at, block)
    held = {name for part in parts for name in part}  # a checkpoint repeats what guesses share with the model
    assert held < expected.keys() and not differing(parts, {name: expected[name] for name in held})


@pytest.mark.slow
def test_what_is_emitted_is_typed_linted_and_formatted(tmp_path: Path) -> None:
    serving = {**RANKS, "llama": {"tp": 2}}
    assert_clean({f"divided_{name}": {**DIVIDED[name], "serving": serving[name]} for name in serving}, tmp_path)
