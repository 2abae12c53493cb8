"""The emitted rewards, and the processes that judge by them: what goes wrong harms only its own answer."""

import importlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

THINKING = "<think>so</think>\n<answer>42</answer>"
FAULTY = """
import os, sys, time
from fractions import Fraction

def reward(prompt, completion):
    match completion:
        case "raise": raise RuntimeError
        case "hang": time.sleep(600)
        case "exit": os._exit(3)
        case "nan": return float("nan")
        case "text": return "1.0"
        case "none": return None
        case "inf": return 10.0**308
        case "other": return Fraction(1)
        case "print": print("null")
    return 1.0
"""


@pytest.fixture(scope="module")
def rewards(learning: Any) -> ModuleType:
    module: ModuleType = learning()("train.rewards")
    return module


@pytest.mark.parametrize(
    ("name", "completion", "answer", "worth"),
    [
        ("exact_match", " 42\n", "42", 1),
        ("exact_match", "42.", "42", 0),
        ("matches", "about 42", r".*\d\d", 1),
        ("matches", "42 about", r".*\d\d", 0),
        ("tagged", THINKING, "42", 1),
        ("tagged", "42", "42", 0),
        ("boxed", r"so \boxed{1} or rather \boxed{\frac{1}{2}}", "0.5", 1),
        ("boxed", r"\boxed{2{x}}", "2{x}", 1),
        ("boxed", r"\boxed{3}", "0.5", 0),
        ("boxed", "0.5", "0.5", 0),
        ("boxed", r"\boxed{0.5", "0.5", 0),
        ("passes_tests", "```python\ndef f(x):\n    return x + 1\n```", "assert f(1) == 2", 1),
        ("passes_tests", "```python\ndef f(x):\n    return x\n```", "assert f(1) == 2", 0),
        ("passes_tests", "```python\nimport os\nos._exit(0)\n```", "assert f(1) == 2", 0),
        ("passes_tests", "```python\nx = 'a' * 2**31\nf = lambda x: 2\n```", "assert f(1) == 2", 0),
        ("passes_tests", "def f(x): return 2", "assert f(1) == 2", 0),
    ],
)
def test_what_answers_are_worth(rewards: ModuleType, name: str, completion: str, answer: str, worth: float) -> None:
    assert rewards.REWARDS[name]("", completion, answer) == worth


@pytest.mark.parametrize(
    ("prompt", "completion", "worth"),
    [
        ("", THINKING, 1),
        ("Think. <think>", THINKING.removeprefix("<think>"), 1),
        ("", THINKING.removeprefix("<think>"), 0),
        ("", f"Well. {THINKING}", 0),
        ("", f"{THINKING}<answer>43</answer>", 0),
        ("", "<answer>42</answer><think>so</think>", 0),
    ],
)
def test_the_format_of_r1(rewards: ModuleType, prompt: str, completion: str, worth: float) -> None:
    assert rewards.think_then_answer(prompt, completion) == worth


def test_an_endless_program_fails_its_tests_in_time(rewards: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "CPU_SECONDS", 0.5)
    start = time.perf_counter()
    assert rewards.passes_tests("", "```python\nwhile True: pass\n```", "") == 0
    assert time.perf_counter() - start < 30


def test_what_is_printed_without_end_fills_no_memory(rewards: ModuleType) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rewards.passes_tests("", "```python\nwhile True: print('x' * 2**20)\n```", "") == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10  # KiB


def test_nothing_that_a_program_has_started_is_left(rewards: ModuleType, tmp_path: Path) -> None:
    """Where root runs it, for which there is no limit of processes, its children end with it."""
    program = f"""```python
import subprocess
children = [subprocess.Popen(["sleep", "600"]) for _ in range(8)]
open({str(tmp_path / "children")!r}, "w").write(" ".join(str(child.pid) for child in children))
```"""
    assert rewards.passes_tests("", program, "") == (os.geteuid() == 0)
    if os.geteuid() == 0:
        children = [Path(f"/proc/{pid}/stat") for pid in (tmp_path / "children").read_text().split()]
        assert len(children) == 8
        until = time.monotonic() + 30
        while any(map(runs, children)):
            assert time.monotonic() < until
            time.sleep(0.05)


def runs(stat: Path) -> bool:
    """Whether the process is more than an entry that nobody has read yet."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "faulty_reward.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "faulty_reward:reward"
    sys.modules.pop("faulty_reward", None)


def test_a_faulty_reward_harms_its_own_answer_alone(
    package: Path, package_at: Any, faulty: str, monkeypatch: Any
) -> None:
    """Judges start as python -m of the package's own module, so it has to be importable by that name."""
    monkeypatch.syspath_prepend(str(package.parent))
    rewards = importlib.import_module("package.train.rewards")
    completions = ["fine", "raise", "fine", "hang", "exit", "nan", "fine", "text", "none", "print", "other", "fine"]
    with rewards.Judges([faulty, "exact_match"], limit=5.0, number=2) as judges:
        found = judges.judge([("", text, "fine") for text in completions])
        worth = {"fine": 2.0, "print": 1.0, "other": 1.0}
        assert found == pytest.approx([worth.get(text, math.nan) for text in completions], nan_ok=True)
        assert judges.failures == 6
        processes = [judge.process for judge in judges._judges]
    assert all(process is None or process.poll() is not None for process in processes)


def test_a_sum_that_no_number_holds_is_a_failure(package: Path, faulty: str, monkeypatch: Any, capfd: Any) -> None:
    """And a judge says why, the first time."""
    monkeypatch.syspath_prepend(str(package.parent))
    rewards = importlib.import_module("package.train.rewards")
    with rewards.Judges([faulty] * 18, limit=60.0, number=1) as judges:
        found = judges.judge([("", text, "") for text in ("fine", "inf", "raise", "fine")])
    assert found == pytest.approx([18.0, math.nan, math.nan, 18.0], nan_ok=True) and judges.failures == 2
    assert capfd.readouterr().err.splitlines() == ["a reward failed: ValueError('inf is no finite number')"]


def test_rewards_that_need_the_answer_say_so(rewards: ModuleType, faulty: str) -> None:
    found = {name for name in (faulty, *rewards.REWARDS) if not rewards.needs_answer(name)}
    assert found == {faulty, "think_then_answer"}


def test_an_unknown_reward_is_refused_by_name(rewards: ModuleType) -> None:
    for name in ("nothing", "no_module:f", "math:nothing"):
        with pytest.raises(ValueError, match=f"{name}: "):
            rewards.load_reward(name)
