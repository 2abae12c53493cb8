"""dsc diff."""

from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.facts.diff import file_changes


def test_the_same(run: Any, facts: Any) -> None:
    assert run("diff", "tiny", "tiny").stdout == "same: tiny and tiny compile to one package\n"
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
    assert shown.startswith("different: 1 key, 6 figures, 2 files\n")
    assert shown.splitlines()[2].split() == ["a.yaml", "b.yaml", "ratio"], "the specs have one name"
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


def test_hashes_are_hidden_until_asked_for(run: Any, facts: Any) -> None:
    """The lock differs whenever anything does, which is no news; for a script it is a file like others."""
    run("shrink", "tiny", "-o", "a.yaml")
    Path("b.yaml").write_text(Path("a.yaml").read_text().replace("vocab_size: 256", "vocab_size: 512"))
    for options in ((), ("--files",)):
        shown = run("diff", "a.yaml", "b.yaml", *options, code=1).stdout
        assert "dsc.lock.json" not in shown and "changed: dims.py" in shown
    assert "changed: dsc.lock.json" in run("diff", "a.yaml", "b.yaml", "--hashes", code=1).stdout
    assert {"path": "dsc.lock.json", "change": "changed"} in facts("diff", "a.yaml", "b.yaml", code=1)["files"]


@pytest.mark.parametrize(
    ("old", "new", "only"),
    [
        (f"a\n{'0' * 64}\nb\n", f"a\n{'1' * 64}\nb\n", True),
        (f"a\n{'0' * 64}\nb\n", f"c\n{'1' * 64}\nb\n", False),
        (f"x: {'0' * 64}\n", f"y: {'1' * 64}\n", False),
        (f"{'0' * 63}\n", f"{'1' * 63}\n", False),
        (f"{'0' * 64}\n", "", False),
    ],
)
def test_what_differs_by_hashes_only(old: str, new: str, only: bool) -> None:
    (change,) = file_changes({"f": old}, {"f": new})
    assert change.only_hashes == only
    (added,) = file_changes({}, {"f": "0" * 64})
    assert not added.only_hashes
