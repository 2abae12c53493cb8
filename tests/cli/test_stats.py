"""dsc stats and dsc zoo: published figures, out of the tool."""

import re
from typing import Any

import pytest

from dsc.spec.zoo import CLUSTERS, MODELS, names


def test_deepseek_v3(facts: Any) -> None:
    stats = facts("stats", "deepseek-v3")
    assert stats["name"] == "deepseek-v3"
    assert stats["num_layers"] == 61 and stats["sequence_length"] == 4096
    assert stats["parameters"] == {
        "total": 671_026_404_352,
        "active": 37_552_282_624,
        "active_without_embedding": 36_625_603_584,
        "mtp": 11_610_067_968,
    }
    assert stats["flops_per_token"]["training"] / 1e9 == pytest.approx(250.46, abs=0.005)
    assert stats["flops_per_token"]["forward"] * 3 == stats["flops_per_token"]["training"]
    assert stats["kv_cache_bytes_per_token"] == 70_272
    assert stats["kv_cache_bytes_per_token_mtp"] == 1_152


def test_training_flops_follow_the_contract(facts: Any) -> None:
    """6 x active_without_embedding + 3 x S x H x (qk_nope + qk_rope + v) x layers."""
    v3, llama = facts("stats", "deepseek-v3"), facts("stats", "llama-3.1-405b")
    attention = 3 * 4096 * 128 * (128 + 64 + 128) * 61
    assert v3["flops_per_token"]["training"] == 6 * v3["parameters"]["active_without_embedding"] + attention
    attention = 3 * 4096 * 128 * (128 + 128) * 126
    assert llama["flops_per_token"]["training"] == 6 * llama["parameters"]["active_without_embedding"] + attention


def test_llama(facts: Any) -> None:
    stats = facts("stats", "llama-3.1-405b")
    assert stats["parameters"]["total"] == stats["parameters"]["active"] == 405_853_388_800
    assert stats["kv_cache_bytes_per_token"] == 516_096
    assert stats["weight_bytes"] == 2 * 405_853_388_800


@pytest.mark.parametrize("name", names(MODELS))
def test_parts_add_up(facts: Any, name: str) -> None:
    stats = facts("stats", name)
    assert sum(stats["parameters_by_part"].values()) == stats["parameters"]["total"]
    assert sum(stats["active_parameters_by_part"].values()) == stats["parameters"]["active"]
    assert sum(stats["training_flops_per_token_by_part"].values()) == stats["flops_per_token"]["training"]
    assert "other" not in stats["parameters_by_part"]


def test_parts_of_deepseek_v3(facts: Any) -> None:
    stats = facts("stats", "deepseek-v3")
    routed = 58 * 256 * 3 * 7168 * 2048
    assert stats["parameters_by_part"]["routed experts"] == routed
    assert stats["active_parameters_by_part"]["routed experts"] == routed * 8 // 256
    assert stats["parameters_by_part"]["dense feed-forward"] == 3 * 3 * 7168 * 18432
    assert stats["parameters_by_part"]["router"] == 58 * 256 * 7168
    assert stats["parameters_by_part"]["embedding"] == stats["parameters_by_part"]["head"] == 129280 * 7168


def test_a_tied_head_has_flops_and_no_parameters(facts: Any) -> None:
    stats = facts("stats", "minicpm3-4b")
    assert "head" not in stats["parameters_by_part"]
    assert stats["training_flops_per_token_by_part"]["head"] == 6 * 73448 * 2560


def test_compare_says_why(run: Any, facts: Any) -> None:
    models = facts("stats", "deepseek-v3", "--compare", "llama-3.1-405b")["models"]
    assert [model["name"] for model in models] == ["deepseek-v3", "llama-3.1-405b"]
    text = run("stats", "deepseek-v3", "--compare", "llama-3.1-405b").stdout
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines() if "  " in line.strip()}
    assert "250.46 GFLOP   2,473.25 GFLOP     0.10x" in rows["training FLOPs per token, causal, 4,096 tokens"]
    assert "37.55 B         405.85 B" in rows["active for one token"]
    assert "70,272 B        516,096 B     0.14x" in rows["cache per token"]
    assert "takes 0.10x the FLOPs of llama-3.1-405b" in text
    assert "dense feed-forward -1,971.50 GFLOP" in text


def test_compare_with_itself(run: Any) -> None:
    assert "the same FLOPs per token" in run("stats", "tiny", "--compare", "tiny").stdout


def test_zoo(run: Any, facts: Any) -> None:
    zoo = facts("zoo")
    assert [model["name"] for model in zoo["models"]] == names(MODELS)
    assert [cluster["name"] for cluster in zoo["clusters"]] == names(CLUSTERS)
    v3 = next(model for model in zoo["models"] if model["name"] == "deepseek-v3")
    assert v3["parameters"] == 671_026_404_352 and v3["kv_cache_bytes_per_token"] == 70_272
    assert all(entry["description"] for entries in zoo.values() for entry in entries)
    text = run("zoo").stdout
    assert all(name in text for name in [*names(MODELS), *names(CLUSTERS)])


def test_context_and_batch(facts: Any, run: Any) -> None:
    """DeepSeek-V3 keeps 70,272 bytes of a token (61 layers, 512 + 64 numbers in bfloat16), whatever the length."""
    found = facts("stats", "deepseek-v3", "--context", "8192", "--batch", "3")
    assert found["sequence_length"] == 8192
    assert found["kv_cache_bytes_of_batch"] == 3 * 8192 * 70_272
    attention = 3 * 61 * 128 * (128 + 64 + 128)  # of a training token, causal, for each token of the length
    plain = facts("stats", "deepseek-v3")
    assert "kv_cache_bytes_of_batch" not in plain
    more = found["flops_per_token"]["training"] - plain["flops_per_token"]["training"]
    assert abs(more - attention * 4096) <= 1e-3 * more
    shown = run("stats", "deepseek-v3", "--context", "8192", "--batch", "3").stdout
    assert re.search(r"caches of 3 sequences of 8,192 tokens +1\.61 GiB", shown)


def test_a_context_beyond_the_positions_is_refused(run: Any) -> None:
    assert "error[DSC063]" in run("stats", "tiny", "--context", "999999", code=2).stderr


def test_markdown(run: Any) -> None:
    lines = run("stats", "tiny", "--compare", "tiny", "--markdown").stdout.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[:2] == ["|  | tiny | tiny | ratio |", "| --- | ---: | ---: | ---: |"]
    assert len({line.count("|") for line in table}) == 1 and any(line.startswith("| - router |") for line in table)
    assert "--json or --markdown" in run("stats", "tiny", "--markdown", "--json", code=2).stderr
