"""Experts with copies on several ranks: texts are those of one process, and copies are where loads ask for them."""

import random
from pathlib import Path
from typing import Any

import pytest
from serving.test_ranks import MODELS, Sections, assert_clean, played_by, write_package, wrong
from serving.test_tensor_ranks import DIVIDED

from dsc.compiler.planner.serving.experts import balanced

COPIED: dict[str, Sections] = {"two": MODELS["deepseek"], "groups": DIVIDED["deepseek"]}
SERVING = {"two": {"ep": 2, "redundant_experts": 2}, "groups": {"tp": 2, "ep": 4, "redundant_experts": 4}}


def test_copies_write_what_one_process_writes_and_count_what_goes_to_them(tmp_path: Path) -> None:
    """Two ranks with 5 slots for 8 experts each. Loads are those of a model that reads each text once."""
    found = played_by(COPIED["two"], SERVING["two"], ("copied",), tmp_path)
    assert not wrong(found, "copied")
    assert [rank["loads"] for rank in found["copied"]] == [found["loads"]] * 2


@pytest.mark.slow
def test_groups_of_ranks_and_guesses_do_too(tmp_path: Path) -> None:
    """An idle group, guesses of a layer that has copies as well."""
    found = played_by(COPIED["groups"], SERVING["groups"], ("copied", "uneven", "dealt", "logprobs"), tmp_path)
    assert not [text for scene in ("copied", "uneven", "dealt") for text in wrong(found, scene)]
    assert [rank["loads"] for rank in found["copied"]] == [found["loads"]] * 4
    assert max(found["logprobs"]) < 1e-5


FAULTS = {
    "a copy is sought where another expert is": ("infer/placement.py", "if held == expert]", "if held == expert ^ 1]"),
    "an expert has more copies than it has": (
        "infer/decode.py",
        "turn % num_copies[experts]",
        "turn % copies.shape[1]",
    ),
    "a rank reads the experts of another": (
        "infer/placement.py",
        "slots[rank * size :",
        "slots[(1 - rank) * size :][:size] or slots[:",
    ),
    "tokens are counted twice": ("infer/decode.py", "loads += ", "loads += 2 * "),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != file or source.count(text) == 1, f"{file} has no {text!r}"
        return source.replace(text, planted) if name == file else source

    found = played_by(COPIED["two"], SERVING["two"], ("copied",), tmp_path, plant, patience=15)
    assert wrong(found, "copied") or found["copied"][0]["loads"] != found["loads"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, package_at: Any) -> Any:
    folder = tmp_path_factory.mktemp("copies")
    write_package({**COPIED["groups"], "serving": SERVING["groups"]}, "copied", folder)
    return package_at(folder / "copied")


def test_places_are_those_of_the_planner(package: Any) -> None:
    """Which follows EPLB, held by its own tests; here on one node. Among them ties and experts that nobody chose."""
    numbers, slots_by_load = random.Random(0), package("infer.placement").slots_by_load
    for loads in [[1.0] * 8, *([float(numbers.randrange(9)) for _ in range(8)] for _ in range(200))]:
        assert tuple(slots_by_load(loads)) == balanced(loads, 12, 1, 1, 4).slots, loads


def test_every_expert_is_read_by_the_ranks_that_hold_it(tmp_path: Path, package: Any) -> None:
    checkpoint, share, placement = (package(name) for name in ("checkpoint", "infer.share", "infer.placement"))
    whole = package("model").Model()
    checkpoint.save_hf(whole, tmp_path)
    loads = [[9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0, 1.0], [float(load) for load in range(8)]]
    slots = placement.place(whole, loads)
    assert len(slots) == 3 and slots["mtp.0.layer.mlp"] == slots["layers.2.mlp"] != slots["layers.1.mlp"]
    for rank in range(4):
        model = share.load_share(tmp_path, rank, loads)
        for path, of_mixture in slots.items():
            held = of_mixture[3 * rank : 3 * rank + 3]
            ours, all = model.get_submodule(path), whole.get_submodule(path)
            assert ours.gate_up_proj.equal(all.gate_up_proj[held]) and ours.down_proj.equal(all.down_proj[held])
            for expert, (row, count) in enumerate(zip(ours.copies, ours.num_copies, strict=True)):
                assert [of_mixture[slot] for slot in row[:count]] == [expert] * of_mixture.count(expert)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "no list of lists"), ("[[1, NaN]]", "no number"), ("[[-1]]", "no number"), ("[[1, 2]]", "do not fit")],
)
def test_loads_that_are_none_are_refused(text: str, said: str, tmp_path: Path, package: Any) -> None:
    placement, file = package("infer.placement"), tmp_path / "loads.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        placement.place(package("model").Model(), placement.read_loads(file))
    assert not placement.read_loads(tmp_path / "nothing.json")


@pytest.mark.slow
def test_what_is_emitted_is_typed_linted_and_formatted(tmp_path: Path) -> None:
    assert_clean({f"copied_{name}": {**COPIED[name], "serving": SERVING[name]} for name in COPIED}, tmp_path)
