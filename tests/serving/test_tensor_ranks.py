"""Ranks that write the same texts together, each with some heads, widths and tokens of the vocabulary."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.specs import BASE, GROUPED
from serving.test_ranks import MODELS, Sections, assert_clean, played_by, write_package, wrong

DENSE: Sections = {"ffn": {"dense": {"intermediate_size": 40}}, "layers": [{"repeat": 3, "ffn": "dense"}]}
EVEN: Sections = {"vocab_size": 84}
DIVIDED: dict[str, Sections] = {
    "llama": {**BASE, **DENSE, **EVEN, "attention": GROUPED, "tie_word_embeddings": True},
    "windows": {**BASE, **DENSE, **EVEN, "attention": {**GROUPED, "kind": "window", "window": 4, "qkv_bias": True}},
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
    """Heads of queries, keys and values, the width, a tied vocabulary; prompts in parts, found prefixes, an error."""
    found = played_by(DIVIDED["llama"], {"tp": 2}, ("uneven", "dealt", "logprobs", "failing"), tmp_path)
    assert_alike(found, "uneven", "dealt")
    assert max(found["logprobs"]) < CLOSE and len(found["logprobs"]) == 2
    assert found["failing"] == ["RankFailed: rank 1 failed: ValueError: planted", "ValueError: planted"]


def test_two_ranks_write_mixtures_together(tmp_path: Path) -> None:
    """Latents whole on both, tokens dealt to the experts of both, guesses."""
    found = played_by(DIVIDED["deepseek"], {"tp": 2, "ep": 2}, ("uneven", "dealt", "logprobs"), tmp_path)
    assert_alike(found, "uneven", "dealt")
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


def test_each_rank_reads_its_part_and_all_that_is_not_divided(tmp_path: Path, package_at: Any) -> None:
    """Parts of all ranks, put together along the dim that differs, are the checkpoint; no more of a file is read."""
    write_package({**DIVIDED["deepseek"], "serving": {"tp": 2, "ep": 4}}, "shared", tmp_path)
    package = package_at(tmp_path / "shared")
    checkpoint, share, model = (package(name) for name in ("checkpoint", "infer.share", "model"))
    whole = model.Model()
    checkpoint.save_hf(whole, tmp_path)
    expected = dict(checkpoint.named_tensors(whole))
    parts = [dict(checkpoint.named_tensors(share.load_share(tmp_path, rank), rank)) for rank in range(4)]
    assert {name for part in parts for name in part} == expected.keys()
    for name, tensor in expected.items():
        found = [part[name] for part in parts if name in part]
        if ".experts." in name:
            assert len(found) == 1 and found[0].equal(tensor)
        elif found[0].shape == tensor.shape:
            assert len(found) == 4 and all(part.equal(tensor) for part in found)
        else:
            dim = next(dim for dim, size in enumerate(tensor.shape) if size != found[0].shape[dim])
            assert torch.cat(found[:2], dim).equal(tensor) and found[2].equal(found[0]) and found[3].equal(found[1])
    kinds = re.compile(r"(embed_tokens|lm_head|q_b_proj|kv_b_proj|o_proj|layers\.0\.mlp\..*)\.weight$")
    cut = {name for name in expected if parts[0].get(name, expected[name]).shape != expected[name].shape}
    assert cut == {name for name in expected if kinds.search(name)}


@pytest.mark.slow
def test_what_is_emitted_is_typed_linted_and_formatted(tmp_path: Path) -> None:
    serving = {**RANKS, "llama": {"tp": 2}}
    assert_clean({f"divided_{name}": {**DIVIDED[name], "serving": serving[name]} for name in serving}, tmp_path)
