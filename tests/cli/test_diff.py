"""dsc diff."""

from pathlib import Path
from typing import Any


def test_the_same(run: Any, facts: Any) -> None:
    assert "compile to the same package" in run("diff", "tiny", "tiny").stdout
    assert facts("diff", "tiny", "tiny") == {"facts": [], "files": [], "spec": []}


def test_comments_are_no_difference(run: Any) -> None:
    run("shrink", "tiny", "-o", "a.yaml")
    Path("b.yaml").write_text("# another\n" + Path("a.yaml").read_text().replace("kind: mla", "kind: mla # latent"))
    run("diff", "a.yaml", "b.yaml")


def test_one_key(run: Any, facts: Any) -> None:
    run("shrink", "tiny", "-o", "a.yaml")
    text = Path("a.yaml").read_text()
    Path("b.yaml").write_text(text.replace("vocab_size: 256", "vocab_size: 512"))
    found = facts("diff", "a.yaml", "b.yaml", code=1)
    assert found["spec"] == [{"name": "vocab_size", "first": 256, "second": 512}]
    total = next(fact for fact in found["facts"] if fact["name"] == "parameters.total")
    assert total["second"] - total["first"] == 2 * 256 * 64
    assert {"path": "dims.py", "change": "changed"} in found["files"]
    shown = run("diff", "a.yaml", "b.yaml", "--files", code=1).stdout
    assert "--- a/dims.py\n+++ b/dims.py\n" in shown
    assert "-VOCAB_SIZE = 256  # vocab_size\n+VOCAB_SIZE = 512  # vocab_size\n" in shown


def test_sections_that_one_side_lacks(facts: Any) -> None:
    found = facts("diff", "deepseek-v3", "llama-3.1-405b", code=1)
    keys = {key["name"]: (key["first"], key["second"]) for key in found["spec"]}
    assert keys["attention.kind"] == ("mla", "gqa")
    assert keys["attention.kv_lora_rank"] == (512, None)
    assert keys["attention.head_dim"] == (None, 128)
    assert keys["mtp.depth"] == (1, None) and "mtp" not in keys
    cache = next(fact for fact in found["facts"] if fact["name"] == "kv_cache_bytes_per_token")
    assert (cache["first"], cache["second"]) == (70_272, 516_096)
    assert {"path": "kernels/mla_attention.py", "change": "removed"} in found["files"]
