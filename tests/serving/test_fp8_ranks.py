"""Experts in FP8 whose rows come from other ranks, by the codes of the checkpoint: what one process in FP8 computes."""

import copy
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.test_checkpoint import SINGLE, Tensors, all_tensors, quantised
from safetensors.torch import save_file
from serving.test_ranks import MODELS, Sections, assert_clean, played_by, write_package, wrong

from dsc.compiler.driver import build
from dsc.spec.loader import loads

BLOCK = 128
FP8: Sections = {
    **copy.deepcopy(MODELS["deepseek"]),
    "hidden_size": BLOCK,
    "vocab_size": 84,
    "layers": [{"repeat": 1, "ffn": "dense"}, {"repeat": 1, "ffn": "moe"}],
    "precision": {"linear": {"kind": "fp8_block"}},
    "cluster": {"kind": "h100", "nodes": 1},  # a CPU runs the references of its kernels
}
FP8["attention"] |= {"q_lora_rank": BLOCK, "kv_lora_rank": BLOCK}
FP8["attention"] |= {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}  # of two heads whole blocks
FP8["ffn"]["dense"]["intermediate_size"] = 2 * BLOCK
FP8["ffn"]["moe"]["moe_intermediate_size"] = BLOCK
CLOSE = 1e-4
"""Of logarithms of probabilities; 4e-6 was measured. Where parts of sums are added up, their last bits move numbers to
the next code: 0.02 was measured."""
APART = 0.1
SCENES = "uneven, without guesses", "logprobs beside an engine"
SERVING: dict[str, dict[str, int]] = {
    "copies": {"ep": 2, "redundant_experts": 2},
    "experts": {"ep": 4},
    "groups": {"tp": 2, "ep": 2},
}


def farthest(found: Any) -> float:
    """Of ranks that wrote the texts of one process."""
    assert not wrong(found, SCENES[0]) and not [rank for rank in found[SCENES[1]] if isinstance(rank, str)]
    return max(found[SCENES[1]])


def test_two_ranks_with_copies_compute_what_one_process_does(tmp_path: Path) -> None:
    """Greedy and sampled, one rank idle for a time: experts get no rows at all there."""
    assert farthest(played_by(FP8, SERVING["copies"], SCENES, tmp_path)) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["experts", "groups"])
def test_other_layouts_do(layout: str, tmp_path: Path) -> None:
    assert farthest(played_by(FP8, SERVING[layout], SCENES, tmp_path)) < (APART if layout == "groups" else CLOSE)


PREPARE, EXPERTS = "infer/prepare.py", "kernels/fp8_experts.py"
FAULTS: dict[str, tuple[str, str, str]] = {
    "a scale is that of another expert": (
        EXPERTS,
        "combine(product(h, h_scale, ends, *down_proj, x.dtype), position, shared)",
        "combine(product(h, h_scale, ends, down_proj[0], down_proj[1].roll(1, 0), x.dtype), position, shared)",
    ),
    "a copy has old codes": (
        PREPARE,
        "quantize_blocks(module.down_proj)",
        "quantize_blocks(module.down_proj[[*range(len(module.down_proj) - 1), 0]])",
    ),
    "gate and up are coded as one": (
        EXPERTS,
        "gate_up_proj.view(-1, gate_up_proj.shape[1] // 2, gate_up_proj.shape[2])",
        "gate_up_proj.roll(64, 1).view(-1, gate_up_proj.shape[1] // 2, gate_up_proj.shape[2])",
    ),
    "rows are those of the rank beside": ("infer/decode.py", ".repeat(ranks)", ".flip(0).repeat(ranks)"),
    "rows weigh nothing": ("infer/decode.py", "h.new_ones(", "h.new_zeros("),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != file or source.count(text) == 1, f"{file} has no {text!r}"
        return source.replace(text, planted) if name == file else source

    (scene,) = SCENES[1:]
    found = played_by(FP8, SERVING["copies"], (scene,), tmp_path, plant)[scene]
    assert all(isinstance(rank, str) or rank > APART for rank in found)


Change = Callable[[str, str], str]
Read = tuple[Tensors, list[Any], list[int]]


def stored_and_prepared(layout: str, folder: Path, package_at: Any, change: Change | None = None) -> Read:
    """A checkpoint in FP8, what each rank makes of it in bfloat16, and the expert in each slot of all ranks."""
    serving = SERVING[layout]
    write_package({**FP8, "serving": serving}, "shared", folder, change)
    package = package_at(folder / "shared")
    whole = package("model").Model()
    package("checkpoint").save_hf(whole, folder)
    stored, _ = quantised(all_tensors(folder), (BLOCK, BLOCK))
    save_file(stored, folder / SINGLE)
    share, prepare, experts = package("infer.share"), package("infer.prepare"), len(whole.layers[1].mlp.down_proj)
    loads, slots = [], list(range(experts))
    if "redundant_experts" in serving:
        loads = [[[9.0, *[1.0] * (experts - 1)]]]
        slots = package("infer.placement").place(whole, *loads)["layers.1.mlp"]
    ranks = range(serving["ep"])
    return stored, [prepare.Model(share.load_share(folder, rank, *loads).bfloat16()) for rank in ranks], slots


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> Read:
    return stored_and_prepared("copies", tmp_path_factory.mktemp("codes"), package_at)


def unlike(read: Read, tensor_ranks: int = 1) -> list[str]:
    """Weights whose codes on some rank are not those of the checkpoint, bit for bit, or whose scales are others."""
    stored, ranks, slots = read
    found = []

    def compare(name: str, codes: torch.Tensor, scale: torch.Tensor, dim: int | None = None, part: int = 0) -> None:
        expected = stored[f"{name}.weight"], stored[f"{name}.weight_scale_inv"]
        if dim is not None:
            expected = tuple(tensor.chunk(tensor_ranks, dim)[part] for tensor in expected)
        same = codes.view(torch.uint8).equal(expected[0].view(torch.uint8))
        if not same or ((scale / expected[1] - 1).abs() > 2**-8).any():  # a block's largest number, in bfloat16
            found.append(name)

    for rank, model in enumerate(ranks):
        mlp, attention, size = model.layers[1].mlp, model.layers[1].self_attn, len(slots) // len(ranks)
        for place, expert in enumerate(slots[rank * size : (rank + 1) * size]):
            of_expert = f"model.layers.1.mlp.experts.{expert}"
            for index, name in enumerate(("gate_proj", "up_proj")):
                row = 2 * place + index
                compare(f"{of_expert}.{name}", mlp.gate_up_proj[row], mlp.gate_up_proj_scale[row])
            compare(f"{of_expert}.down_proj", mlp.down_proj[place], mlp.down_proj_scale[place])
        for name, dim in (("q_a_proj", None), ("q_b_proj", 0), ("kv_b_proj", 0), ("o_proj", 1)):
            codes, scale = getattr(attention, name), getattr(attention, f"{name}_scale")
            compare(f"model.layers.1.self_attn.{name}", codes, scale, dim, rank % tensor_ranks)
    return found


def test_codes_of_each_rank_are_those_of_the_checkpoint(copies: Read) -> None:
    assert not unlike(copies)


@pytest.mark.slow
def test_so_are_parts_of_codes(tmp_path: Path, package_at: Any) -> None:
    assert not unlike(stored_and_prepared("groups", tmp_path, package_at), tensor_ranks=2)


WRONG_PARTS = {
    "a part begins inside a block": (
        "slice(place * size, (place + 1) * size)",
        "slice(start := place * size - 64 * place * (size % 128 == 0), start + size)",
    ),
    "a scale is that of the block beside": (".repeat_interleave(rows, 0)", ".roll(1, 0).repeat_interleave(rows, 0)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", WRONG_PARTS)
def test_wrong_parts_are_caught(fault: str, tmp_path: Path, package_at: Any) -> None:
    text, planted = WRONG_PARTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != "checkpoint.py" or source.count(text) == 1
        return source.replace(text, planted) if name == "checkpoint.py" else source

    assert unlike(stored_and_prepared("groups", tmp_path, package_at, plant), tensor_ranks=2)


def test_a_byte_is_held_of_each_number_of_an_expert(copies: Read) -> None:
    """As the graph says, of which the planner counts."""
    _, (first, *_), _ = copies
    write = {**FP8, "name": "shared", "serving": SERVING["copies"]}
    serving = build(loads(json.dumps(write), "spec.yaml")).serving
    values = [value for block in serving.methods("MixtureOfExperts") for value in block.prepared]
    stacks = [value for value in values if "proj" in value.name]
    held = {value.name: getattr(first.layers[1].mlp, value.name) for value in stacks}
    assert len(stacks) == 4
    for tensor, value in zip(held.values(), stacks, strict=True):
        assert list(tensor.shape) == [dim.value() for dim in value.type.shape], value.name
        assert tensor.nbytes == value.type.bytes.value(), value.name
    codes = held["gate_up_proj"]
    assert codes.nbytes == codes.numel() == 5 * 2 * BLOCK * BLOCK


class Alone:
    """One rank of several, without the others."""

    rank = 0

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def least(self, pages: int) -> int:
        return pages

    def add(self, loads: torch.Tensor) -> torch.Tensor:
        return loads

    def deal(self, parts: list[Any]) -> Any:
        return parts[0]


def weights_left(layout: str, folder: Path, package_at: Any, change: Change | None = None) -> list[bool]:
    """Whether wide weights are there once the commands of a rank have made codes of them."""
    write_package({**FP8, "serving": SERVING[layout]}, "shared", folder, change)
    package = package_at(folder / "shared")
    package("checkpoint").save_hf(package("model").Model(), folder)
    generate, load = package("infer.generate"), package("infer.share").load_share
    wide: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []

    def loaded(*arguments: Any) -> Any:
        model = load(*arguments)
        layer = model.layers[1]
        wide.extend(map(weakref.ref, (layer.mlp.gate_up_proj, layer.mlp.down_proj, layer.self_attn.o_proj.weight)))
        return model

    generate.Ranks, generate.load_share = Alone, loaded
    generate.lead_or_follow = lambda *_: left.extend(weight() is not None for weight in wide)
    generate.on_ranks(folder, print, *([None] if layout == "copies" else []))
    return left


@pytest.mark.parametrize("layout", ["copies", "experts"])
def test_wide_weights_are_let_go_once_there_are_codes(layout: str, tmp_path: Path, package_at: Any) -> None:
    assert weights_left(layout, tmp_path, package_at) == [False] * 3


def test_wide_weights_that_stay_are_seen(tmp_path: Path, package_at: Any) -> None:
    def keep(name: str, source: str) -> str:
        return source.replace("del model", "pass") if name == "infer/generate.py" else source

    assert weights_left("experts", tmp_path, package_at, keep) == [True] * 3


@pytest.mark.slow
def test_what_is_emitted_is_typed_linted_and_formatted(tmp_path: Path) -> None:
    assert_clean({f"coded_{name}": {**FP8, "serving": serving} for name, serving in SERVING.items()}, tmp_path)
