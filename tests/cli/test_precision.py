"""What a machine has no kernels for: check, plan and compile say the same of it, and plan what is emitted."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsc.spec.zoo import CLUSTERS, MODELS

FP8 = {"parameters": "bf16", "kv_cache": "bf16", "linear": {"kind": "fp8_block"}}
PLAIN = FP8 | {"linear": {"kind": "bf16"}}
MACHINES = {
    "a100": "sm_80 has no units for float8_e4m3fn",
    "cpu": "plain PyTorch, for lack of kernels for cpu",
    "l40s": "plain PyTorch, for lack of kernels for l40s",
    "mi300x": "gfx942 has no units for float8_e4m3fn",
    "h100": "",
}


def placed(precision: Mapping[str, object], cluster: object, name: str = "spec.yaml") -> Path:
    spec = yaml.safe_load((MODELS / "tiny.yaml").read_text())
    path = Path(name)
    path.write_text(yaml.safe_dump(spec | {"precision": dict(precision), "cluster": cluster}))
    return path


def said(run: Any, *arguments: str | Path) -> list[str]:
    """Notes and warnings, without the word that begins them."""
    lines = run(*arguments).stderr.splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith(("note: ", "warning: "))]


def planned(facts: Any, spec: Path, *more: str) -> dict[str, Any]:
    return {key: value for key, value in facts("plan", spec, *more).items() if key != "spec_sha256"}


@pytest.mark.parametrize(("kind", "reason"), MACHINES.items())
def test_products_in_fp8_get_one_answer(run: Any, facts: Any, kind: str, reason: str) -> None:
    spec = placed(FP8, {"kind": kind, "nodes": 1})
    notes = [f"precision.linear: products run in bf16, not in FP8: {reason}"] if reason else []
    assert said(run, "check", spec) == said(run, "plan", spec) == said(run, "compile", spec, "-o", "package") == notes
    emits = any("fp8" in path.name for path in Path("package/kernels").glob("*.py"))
    assert emits == (not reason)
    plain = placed(PLAIN, {"kind": kind, "nodes": 1}, "plain.yaml")
    for mode in ("train", "decode"):
        same = planned(facts, spec, "--mode", mode) == planned(facts, plain, "--mode", mode)
        assert same == bool(reason), "what is planned is what is emitted"


def test_another_cluster_on_the_command_line_is_asked_too(run: Any) -> None:
    spec = placed(FP8, {"kind": "h100", "nodes": 1})
    assert not said(run, "plan", spec)
    assert said(run, "plan", spec, "--cluster", "a100", "--nodes", "1") == [
        "precision.linear: products run in bf16, not in FP8: sm_80 has no units for float8_e4m3fn"
    ]


def test_blocks_without_tiles(run: Any, facts: Any) -> None:
    linear = {"kind": "fp8_block", "weight_block": [64, 64], "activation_block": [1, 64]}
    spec = placed(FP8 | {"linear": linear}, "h100")
    (note,) = said(run, "check", spec)
    assert "no tiles for blocks of 64 x 64 and 1 x 64" in note
    assert said(run, "plan", spec) == said(run, "compile", spec, "-o", "package") == [note]
    assert planned(facts, spec) == planned(facts, placed(PLAIN, "h100", "plain.yaml"))


def test_a_machine_of_ones_own_that_gives_no_rate_of_fp8(run: Any, facts: Any) -> None:
    machine = yaml.safe_load((CLUSTERS / "h100.yaml").read_text()) | {"name": "ours", "fp8_flops": None}
    Path("ours.yaml").write_text(yaml.safe_dump(machine))
    spec = placed(FP8, "./ours.yaml")
    notes = ["precision.linear: products run in bf16, not in FP8: ours has no fp8_flops"]
    assert said(run, "check", spec) == said(run, "plan", spec) == said(run, "compile", spec, "-o", "package") == notes


@pytest.mark.parametrize(("kind", "kept"), [("a100", "plain"), ("l40s", "plain"), ("h100", "fp8")])
def test_rows_of_the_cache(run: Any, facts: Any, kind: str, kept: str) -> None:
    spec = yaml.safe_load((MODELS / "tiny.yaml").read_text())
    spec["attention"]["kv_lora_rank"] = 128
    rows = {name: spec | {"precision": PLAIN | {"kv_cache": name}, "cluster": kind} for name in ("fp8", "bf16")}
    for name, text in rows.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(text))
    notes = said(run, "check", "fp8.yaml")
    assert notes == said(run, "plan", "fp8.yaml") == said(run, "compile", "fp8.yaml", "-o", "package")
    assert bool(notes) == (kept == "plain")
    asked = [planned(facts, Path(f"{name}.yaml"), "--mode", "decode") for name in rows]
    assert (asked[0] == asked[1]) == (kept == "plain")


def test_pinned_activations_follow_the_products(run: Any) -> None:
    spec = placed(FP8, {"kind": "a100", "gpus": 1})
    spec.write_text(spec.read_text() + "placement: {activations: fp8}\n")
    notes = said(run, "check", spec)
    assert notes[1:] == ["placement.activations: kept in bf16, as products read them"]
    assert said(run, "plan", spec) == said(run, "compile", spec, "-o", "package") == notes


def test_pins_that_only_a_deployment_keeps_to_are_warned_of(run: Any) -> None:
    """A pool of eight may serve in one group of experts; no training has more ranks of experts than experts."""
    spec = placed(PLAIN, {"kind": "h100", "nodes": 4})
    spec.write_text(spec.read_text() + "placement: {ep: 32}\n")
    notes = said(run, "check", spec)
    assert len(notes) == 1 and notes[0].startswith("train: on one device, for no layout keeps to the pins: ep = 32")
    assert said(run, "compile", spec, "-o", "package") == notes
    run("plan", spec, code=2)
    run("plan", spec, "--mode", "decode")


IMPOSSIBLE = ["tp: 3", "pp: 3, dp: 1", "ep: 32, zero: 0", "micro_batch: 3, dp: 3", "tp: 4, dp: 4"]


@pytest.mark.parametrize(
    "pins", ["recompute: [full, norms]", "recompute: [swiglu, swiglu]", "activations: fp8", *IMPOSSIBLE]
)
def test_pins_that_nothing_can_keep_to_are_errors(run: Any, pins: str) -> None:
    """The same one of every verb, at its place."""
    spec = placed(PLAIN, {"kind": "h100", "nodes": 1})
    spec.write_text(spec.read_text() + f"placement: {{{pins}}}\n")
    told = [run(*words, code=2).stderr for words in (("check", spec), ("plan", spec), ("compile", spec))]
    assert told[0] == told[1] == told[2] and re.match(r"spec.yaml:\d+:\d+: error\[DSC070\]", told[0])
