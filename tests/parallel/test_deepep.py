"""Tokens to other ranks' experts by DeepEP: the step of one process, on ranks for which deep_ep_on_cpus.py stands in.

The real module has not been run with what is emitted: that needs GPUs.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from dsc.compiler.driver import build, emit, problem_of
from dsc.compiler.planner.machine.collectives import Experts, Group, deduplicated_all_to_all
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.memory.deepep import buffer_bytes
from dsc.compiler.planner.memory.lines import DEEPEP_BUFFER, EXPERT_BUFFERS
from dsc.compiler.planner.report.locked import locked_plan
from dsc.compiler.planner.report.plan import make_plan
from dsc.spec.errors import DscError
from dsc.spec.model import ModelSpec

STAND_IN, EXCHANGED, STEPS = (
    Path(__file__).with_name(name) for name in ("deep_ep_on_cpus.py", "exchanged.py", "steps.py")
)
BF16 = 2**-7
"""A step of bfloat16 between its numbers, relative."""
EP: dict[str, Any] = {"dp": 2, "ep": 2}
V = {"pp": 2, "vpp": 2, **EP, "schedule": "zbv"}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, dp 4 x ep 4": ("mixtral", {"dp": 4, "ep": 4}),
    "deepseek, dp 4 x ep 4, zero 3": ("deepseek", {"dp": 4, "ep": 4, "zero": 3}),
    "deepseek, dp 4 x ep 2": ("deepseek", {"dp": 4, "ep": 2}),
    "deepseek, pp 2 x dp 2 x ep 2, zbv, experts": ("deepseek", {**V, "recompute": ["experts"]}),
    "deepseek, tp 2 x dp 2 x ep 4": ("deepseek", {"tp": 2, "dp": 2, "ep": 4}),
    "deepseek, cp 2 x ep 2": ("deepseek", {"cp": 2, "ep": 2}),
}
FAULTS: dict[str, tuple[str, str, str]] = {
    "results come back by the handle of another layer": (
        "train/deepep.py",
        "Combine.apply(rows, sent.handle, buffer)",
        "Combine.apply(rows, buffer.__dict__.setdefault('first', sent.handle), buffer)",
    ),
    "gradients go out by the handle of another layer": (
        "train/deepep.py",
        "handle=ctx.handle,",
        "handle=ctx.buffer.__dict__.setdefault('first', ctx.handle),",
    ),
    "weights count twice": ("train/experts.py", "h = h * slot_weights", "h = h * slot_weights * slot_weights"),
    "weights have no gradient": ("train/deepep.py", "None, dweights, None", "None, 0 * dweights, None"),
    "shared experts are left out": ("train/experts.py", "out = out + shared", "out = out + 0 * shared"),
    "rows are taken for those of the expert beside": (
        "train/deepep.py",
        "psum_num_recv_tokens_per_expert",
        "psum_num_recv_tokens_per_expert - 1",
    ),
    "rows are read before they have arrived": ("train/deepep.py", "self.event.current_stream_wait()", "pass"),
    "there is no room for a micro-batch": ("train/deepep.py", "MICRO_BATCH * length", "MICRO_BATCH * length // 2"),
    "loads are those of two steps": ("train/experts.py", "expert_load.add_(load)", "expert_load.add_(load**2)"),
}
WIDER = {"dtype != torch.bfloat16": "dtype != torch.float64", "flatten(0, 1).float()": "flatten(0, 1).double()"}
"""What is compared to the last digits goes in float64, here and in the stand-in."""

Change = Callable[[str, str], str]


def wider(name: str, text: str) -> str:
    if name == "train/deepep.py":
        for right, wide in WIDER.items():
            assert text.count(right) == 1
            text = text.replace(right, wide)
    return text


@pytest.fixture
def sent_by(placed_spec: Any) -> Callable[..., dict[str, Any]]:
    """A spec on GPUs whose placement says deepep, or what is given."""

    def spec(model: str, placement: dict[str, Any], dispatch: str = "deepep") -> dict[str, Any]:
        placed: dict[str, Any] = placed_spec(model, {**placement, "dispatch": dispatch})
        gpus = {"kind": "h100", "gpus": placed["cluster"]["nodes"]}
        return {**placed, "hidden_size": 256, "cluster": gpus, "precision": {"parameters": "bf16"}}

    return spec


@pytest.fixture
def in_float64(compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, bool]]:
    """How far ranks are from one process."""
    shutil.copy(STAND_IN, tmp_path / "deep_ep.py")
    monkeypatch.setenv("DEEP_EP_WIDE", "1")

    def compare(spec: dict[str, Any], change: Change = lambda _, text: text) -> tuple[float, bool]:
        found: tuple[float, bool] = compared(
            spec, tmp_path, "float64", lambda name, text: change(name, wider(name, text))
        )
        return found

    return compare


def test_a_step_is_that_of_one_process(sent_by: Any, in_float64: Any) -> None:
    difference, equal_biases = in_float64(sent_by("deepseek", EP))
    assert difference <= 1e-13 and equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_so_it_is_on_more_layouts(layout: str, sent_by: Any, in_float64: Any) -> None:
    difference, equal_biases = in_float64(sent_by(*MORE[layout]))
    assert difference <= 1e-13 and equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, sent_by: Any, in_float64: Any, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPS", "1")
    change = planted(*FAULTS[fault])
    try:
        difference, equal_biases = in_float64(sent_by("deepseek", EP), change)
    except AssertionError as error:
        assert "AssertionError" in str(error), error  # the stand-in refused on a rank
        return
    assert not difference <= 1e-6 or not equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral", "deepseek"])
def test_in_bfloat16_ranks_take_the_step_of_the_all_to_all(
    model: str, sent_by: Any, package_of: Any, run_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is emitted, as it is. One step: in the next one, other experts may be the nearest."""
    monkeypatch.setenv("STEPS", "1")
    found = {}
    for dispatch in ("deepep", "all_to_all"):
        (folder := tmp_path / dispatch).mkdir()
        shutil.copy(STAND_IN, folder / "deep_ep.py")
        package = package_of(sent_by(model, EP, dispatch), folder)
        command = sys.executable, str(STEPS), str(folder), package, "bfloat16"
        found[dispatch] = json.loads(run_in(*command, folder=folder).splitlines()[-1])["ranks"]
    for by_deepep, direct in zip(found["deepep"], found["all_to_all"], strict=True):
        assert by_deepep["rows"][0] == pytest.approx(direct["rows"][0], rel=BF16)
        assert by_deepep["biases"] == direct["biases"]
        for name, gradient in by_deepep["gradients"].items():
            assert gradient == pytest.approx(direct["gradients"][name], rel=BF16, abs=BF16), name


@pytest.mark.slow
def test_experts_in_fp8_take_rows_as_they_came(fp8_spec: Any, in_float64: Any) -> None:
    spec = fp8_spec({**EP, "micro_batch": 4, "dispatch": "deepep"}) | {"hidden_size": 256}
    text = emit(build(ModelSpec.model_validate(spec)))["train/experts.py"]
    assert "fp8_routed_experts(h, slot_weights, order, position, ends" in text
    difference, equal_biases = in_float64(spec)
    assert difference < 1e-6 and equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_sends_the_bytes_of_the_plan(
    ranks: int, sent_by: Any, package_of: Any, run_in: Any, tmp_path: Path
) -> None:
    """Rows there and back, forward and backward, where whatever seven of eight experts are is on all ranks."""
    spec = sent_by("mixtral", {"dp": ranks, "ep": ranks})
    moe = {**spec["ffn"]["moe"], "num_experts_per_tok": 7}
    package = package_of({**spec, "ffn": {"moe": moe}}, tmp_path)
    shutil.copy(STAND_IN, tmp_path / "deep_ep.py")
    command = sys.executable, str(EXCHANGED), str(tmp_path), package, "bfloat16"
    sent = json.loads(run_in(*command, folder=tmp_path).splitlines()[-1])
    machine = hardware(ModelSpec.model_validate(spec).cluster)
    one = deduplicated_all_to_all(16 * 32 / ranks, 256, 2, Experts(8, 7), Group(ranks), machine)
    assert not one.network and one.scale_up == 16 * 32 / ranks * 256 * 2 * (ranks - 1)
    assert [rank["by_deepep"] for rank in sent] == [4 * 4 * one.scale_up] * ranks
    assert not any(rank["rows"] for rank in sent), "and none by other ways"


def test_without_the_module_a_line_says_what_to_install(
    sent_by: Any, emitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepep = emitted(emit(build(ModelSpec.model_validate(sent_by("deepseek", EP)))))("train.deepep")
    monkeypatch.setitem(sys.modules, "deep_ep", None)
    with pytest.raises(SystemExit, match=r"install deep_ep from https://github\.com/deepseek-ai/DeepEP"):
        deepep.make_buffer(None, 32, torch.bfloat16)
    with pytest.raises(SystemExit, match="--dtype float32: DeepEP takes rows in bfloat16 alone"):
        deepep.make_buffer(None, 32, torch.float32)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dispatch deepep needs GPUs of Hopper or Blackwell, and cpu has ": ({}, {"cluster": {"kind": "cpu", "nodes": 2}}),
    "and a100 has ": ({}, {"cluster": {"kind": "a100", "gpus": 2}}),
    "sends bfloat16, and precision.parameters is fp32: write bf16": ({}, {"precision": {"parameters": "fp32"}}),
    "256 components at a time, which do not divide hidden_size: 320 = 1 x 256 + 64": ({}, {"hidden_size": 320}),
    "with ep = 1 a rank has all: write all_to_all": ({"ep": 1}, {}),
    "etp = 2 cuts them: etp 1, or all_to_all": ({"dp": 1, "tp": 2, "ep": 1, "etp": 2}, {}),
}


@pytest.mark.parametrize("said", REFUSED)
def test_where_it_does_not_run_the_pin_is_refused(said: str, sent_by: Any) -> None:
    placement, other = REFUSED[said]
    with pytest.raises(DscError) as error:
        build(ModelSpec.model_validate({**sent_by("deepseek", {**EP, **placement}), **other}))
    assert any(said in finding.message for finding in error.value.findings), error.value
    assert {finding.code for finding in error.value.findings} == {"DSC070"}


NOT_EMITTED: dict[str, dict[str, Any]] = {
    "schedule dualpipe-v with dispatch deepep": {**V, "schedule": "dualpipe-v"},
    "recompute full with dispatch deepep": {**EP, "recompute": ["full"]},
}


@pytest.mark.parametrize("said", NOT_EMITTED)
def test_what_it_is_not_emitted_with_is_told(said: str, sent_by: Any) -> None:
    """A pair would have to be cut at its all-to-alls. A layer that runs again would read its rows in another order than
    what was kept of the first time knows them in."""
    program = build(ModelSpec.model_validate(sent_by("deepseek", NOT_EMITTED[said])))
    assert program.step.sharing is None
    assert any(f"no code yet for {said}" in note for note in program.notes)
    left_open = sent_by("deepseek", {**V, **NOT_EMITTED[said], "schedule": None, "recompute": None, "vpp": None})
    found = build(ModelSpec.model_validate(left_open)).step.sharing
    assert found is not None and found.deepep
    assert found.schedule != "DualPipeV" and found.recompute != ("full",)


def test_the_planner_prices_what_is_emitted(sent_by: Any, tmp_path: Path) -> None:
    """Its graph, one wait of the host, the buffer; and its plan.yaml says so by itself."""
    spec = ModelSpec.model_validate(sent_by("deepseek", EP))
    by_deepep, direct = (
        make_plan(problem_of(one)) for one in (spec, ModelSpec.model_validate(sent_by("deepseek", EP, "all_to_all")))
    )
    (line,) = (line for line in by_deepep.roles[0].lines if line.name == EXPERT_BUFFERS)
    assert (line.bytes, line.source) == (buffer_bytes(32, 256, 2, 2, 2), DEEPEP_BUFFER)
    assert not any(line.name == EXPERT_BUFFERS for line in direct.roles[0].lines)
    program = build(spec)
    path = tmp_path / "plan.yaml"
    path.write_text(program.plan)
    assert YAML(typ="safe").load(path)["placement"]["dispatch"] == "deepep"
    open_ = spec.model_copy(update={"placement": None})
    again = build(open_, locked=locked_plan(str(path), open_, given=True))
    assert again.step.sharing == program.step.sharing and again.plan == program.plan


def test_the_buffer_has_room_for_all_tokens_of_all_ranks() -> None:
    """Of DeepSeek-V3, 4096 tokens a rank. On 8 ranks of a node rows go out at once from all of them, of 14336 bytes and
    100 more; on 64 of eight nodes more rows come back: from each node to each one, with 1280 more on the way."""
    assert buffer_bytes(4096, 7168, 8, 8, 8) == -(-8 * 4096 * (14336 + 128) // 2**21) * 2**21
    back = (8 * 8 + 8) * 4096 + 8 * (4096 + 1280)
    assert buffer_bytes(4096, 7168, 8, 64, 8) == -(-back * (14336 + 64) // 2**21) * 2**21
