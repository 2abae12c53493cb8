"""Ranks that share the weights as a plan says answer and learn as one process does, and go on bit by bit.

In float64: answers, rewards, losses, the first gradients, weights at the end, and the distance of engine and trainer.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dsc.compiler.driver import build, emit
from dsc.spec.model import ModelSpec

ANSWERS = Path(__file__).with_name("answers.py")
TIMES = ("seconds", "tokens_per_second")
RL = {"max_new_tokens": 8, "group_size": 4}
EXPERTS = {"dp": 2, "ep": 2}
GRPO = ("--reward", "taste:taste", "--prompts", "questions.jsonl", "--questions", "4", "--micro-batch", "3")
SFT = ("--start", "start", "--data", "questions.jsonl", "--batch-size", "8", "--row-tokens", "20", "--micro-batch", "1")
FLAGS = {"grpo": (*GRPO, "--judges", "1", "--learning-rate", "1e-3"), "sft": SFT}


class Case(NamedTuple):
    trainer: str
    model: str
    placement: dict[str, Any]
    rl: dict[str, Any]


REPLAYED = Case("grpo", "deepseek", {**EXPERTS, "zero": 3}, {"router_replay": True})
CASES = {
    "experts, ZeRO 3, replay": REPLAYED,
    "experts, ZeRO 1": Case(
        "grpo", "deepseek", {**EXPERTS, "zero": 1}, {"epochs": 2, "reference_refresh": 1, "ratio": "sequence"}
    ),
    "ZeRO 2, replay": Case("grpo", "mixtral", {"dp": 2, "zero": 2}, {"router_replay": True, "denominator": "tokens"}),
    "ZeRO 1, a tied head": Case("grpo", "llama", {"dp": 2, "zero": 1}, {"kl": 0.0, "denominator": "constant"}),
    "copies of experts, ZeRO 3": Case("grpo", "mixtral", {"dp": 4, "ep": 2, "zero": 3}, {"router_replay": True}),
    "sequences, experts, replay": Case(
        "grpo", "deepseek", {"dp": 1, "cp": 2, "ep": 2, "zero": 1}, {"router_replay": True, "denominator": "tokens"}
    ),
    "sequences, windows, ZeRO 3": Case("grpo", "window", {"dp": 1, "cp": 2, "zero": 3}, {"overlong_mask": True}),
    "sequences and data": Case("grpo", "mixtral", {"dp": 2, "cp": 2, "ep": 2, "zero": 2}, {"router_replay": True}),
    "answers, experts, ZeRO 1": Case("sft", "deepseek", {**EXPERTS, "zero": 1}, {}),
    "answers, windows, ZeRO 3": Case("sft", "window", {"dp": 2, "zero": 3}, {}),
}
FAST = ("experts, ZeRO 3, replay",)


@pytest.fixture
def spec_of(placed_spec: Any) -> Any:
    def spec(case: Case) -> dict[str, Any]:
        return {**placed_spec(case.model, case.placement), "tokens": {"eos": 255}, "rl": {**RL, **case.rl}}

    return spec


START = """
import torch
from {package} import checkpoint, model
torch.manual_seed(1)
start = model.Model()
with torch.no_grad():
    for weight in start.parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.08)
    for name, buffer in start.named_buffers():
        if buffer.is_floating_point():
            buffer.normal_(std=0.01)
checkpoint.save_hf(start, "start")
"""


@pytest.fixture
def runs_of(spec_of: Any, package_of: Any, run_in: Any, tmp_path: Path) -> Any:
    """What answers.py prints of a case, from weights that spread answers and experts."""

    def runs(case: Case, change: Any = None) -> dict[str, Any]:
        package = package_of(spec_of(case), tmp_path, change)
        run_in(sys.executable, "-c", START.format(package=package), folder=tmp_path)
        draw = random.Random(0)
        texts = [["".join(draw.choices("abcdef", k=draw.randint(1, 9))) for _ in range(2)] for _ in range(20)]
        rows = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in texts)
        (tmp_path / "questions.jsonl").write_text("".join(rows))
        (tmp_path / "taste.py").write_text("def taste(_, text):\n    return sum(text.encode()) % 7 / 7\n")
        world = case.placement["dp"] * case.placement.get("cp", 1)
        command = (sys.executable, ANSWERS, tmp_path, package, case.trainer, world, 3, *FLAGS[case.trainer])
        found: dict[str, Any] = json.loads(run_in(*map(str, command), folder=tmp_path).splitlines()[-1])
        return found

    return runs


def apart(found: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """By name, how far ranks are from one process: figures relatively, tensors in parts of their norms."""
    alone = found["one"]
    (rows, *_) = (rank["rows"] for rank in found["ranks"])
    for row, expected in zip(rows, alone["rows"], strict=True):
        assert row.keys() == expected.keys()
        for name in expected.keys() - set(TIMES):
            yield abs(row[name] - expected[name]) / max(1.0, abs(expected[name])), name
    for kind in ("gradients", "weights"):
        assert {name for rank in found["ranks"] for name in rank[kind]} == alone[kind].keys()
        for rank in found["ranks"]:
            for name, pair in rank[kind].items():
                norm = max(1e-3, alone[kind][name][0])
                yield from ((abs(a - b) / norm, name) for a, b in zip(pair, alone[kind][name], strict=True))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_ranks_learn_what_one_process_learns(name: str, runs_of: Any) -> None:
    case = CASES[name]
    found = runs_of(case)
    alone, ranks = found["one"], found["ranks"]
    assert max(apart(found)) < (1e-12, "")
    assert len(alone["rows"]) == 3 and all(rank["biases"] == alone["biases"] for rank in ranks)
    if case.trainer == "grpo":
        assert all(row["mismatch"] < 1e-25 and row["useful"] > 0 for row in ranks[0]["rows"])
        assert alone["gradients"].keys() == {name for name in alone["weights"] if not name.startswith("mtp.")}
        assert ("kl" in alone["rows"][-1]) == (case.rl.get("kl") != 0.0)
    for rank, resumed in zip(ranks, found["resumed"], strict=True):
        assert all(rank[kind] == resumed[kind] for kind in ("weights", "biases"))
    whole, resumed = (found[kind][0]["rows"][-1] for kind in ("ranks", "resumed"))
    assert all(whole[name] == resumed[name] for name in whole.keys() - set(TIMES)), "answers, and all that follows"


ANSWERING = """    @torch.no_grad()
    def answering(self) -> Model:
        \"\"\"The model as an engine reads it, a"""
LAYOUT, EXPERIENCE = "train/layout.py", "train/experience.py"
FAULTS = {
    "an engine of older weights": (LAYOUT, ANSWERING, f"    @lru_cache\n{ANSWERING}"),
    "a reference of other weights": (LAYOUT, "        copied.load_state_dict(self.model.state_dict())\n", ""),
    "losses of one rank": (LAYOUT, "        dist.all_reduce(told)\n", ""),
    "gradients of the first part": (LAYOUT, "index + 1 == len(parts)", "index == 0"),
    "weights in another order": (LAYOUT, "found.to_local())", "found.to_local().flip(0))"),
    "the same part on all ranks": (EXPERIENCE, "group.rank()", "0"),
    "padding that is an answer": (EXPERIENCE, "part(self.labels, -100)", "part(self.labels, 1)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str, runs_of: Any) -> None:
    where, line, instead = FAULTS[fault]

    def change(path: str, text: str) -> str:
        if path != where:
            return text
        assert line in text
        return text.replace(line, instead).replace("import partial", "import lru_cache, partial")

    ranks = EXPERTS if where == LAYOUT else {"dp": 1, "cp": 2, "ep": 2}
    found = runs_of(Case("grpo", "mixtral", {**ranks, "zero": 1}, {"router_replay": True}), change)
    mismatch = max(row["mismatch"] for row in found["ranks"][0]["rows"])
    assert max(mismatch, max(apart(found))[0]) > 1e-6


def test_a_layout_without_code_is_refused_in_a_line(spec_of: Any, emitted: Any) -> None:
    """And so are ranks of another number than the plan's."""
    for placement, said in (
        ({"pp": 2, "dp": 1}, "placement.pp 1"),
        ({"dp": 2}, "over 2 processes; this run has 3"),
    ):
        case = Case("grpo", "llama", placement, {})
        module = emitted(emit(build(ModelSpec.model_validate(spec_of(case)))))
        ranks = module("train.ranks").Ranks(torch.device("cpu"))
        ranks.size = 3
        with pytest.raises(SystemExit, match=said) as stop:
            module("train.layout").make_layout(ranks, torch.float32, 0)
        assert "\n" not in str(stop.value)
