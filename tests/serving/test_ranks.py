"""Several ranks write what one process writes: experts shared out, texts dealt, some ranks idle, one that fails."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numerics.specs import BASE, GROUPED, MTP, SMALL_MOE, SOFTMAX

from dsc.compiler.driver import build, emit
from dsc.spec.loader import loads

SCRIPT = Path(__file__).with_name("ranks.py")

Sections = dict[str, Any]


def v2_lite() -> Sections:
    """Queries without a latent, softmax over one group, two shared experts; and a layer that guesses."""
    sections = copy.deepcopy(BASE)
    sections["attention"]["q_lora_rank"] = None
    sections["ffn"]["moe"] |= {"n_shared_experts": 2, "router": {"score": "softmax", "norm_topk_prob": False}}
    return {**sections, "mtp": MTP}


MODELS: dict[str, Sections] = {
    "deepseek": {**BASE, "mtp": MTP},
    "v2-lite": v2_lite(),
    "mixtral": {**BASE, "attention": GROUPED, "ffn": {"moe": SMALL_MOE}, "layers": [{"repeat": 3, "ffn": "moe"}]},
    "two mixtures": {
        **BASE,
        "ffn": {"one": {**SMALL_MOE, "n_routed_experts": 6}, "other": {**SMALL_MOE, "router": SOFTMAX}},
        "layers": [{"repeat": 2, "cycle": [{"ffn": "one"}, {"ffn": "other"}]}],
    },
}


def write_package(sections: Sections, name: str, folder: Path, change: Callable[[str, str], str] | None = None) -> None:
    spec = loads(json.dumps({**sections, "name": name, "max_position_embeddings": 128}), "spec.yaml")
    for path, text in emit(build(spec)).items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(change(path, text) if change else text)


def played(
    model: str,
    ranks: int,
    scenes: tuple[str, ...],
    folder: Path,
    change: Callable[[str, str], str] | None = None,
    patience: int = 120,
) -> Any:
    """What ranks with shared experts wrote in some scenes of ranks.py, and one process."""
    return played_by(MODELS[model], {"ep": ranks}, scenes, folder, change, patience)


def played_by(
    sections: Sections,
    serving: dict[str, int],
    scenes: tuple[str, ...],
    folder: Path,
    change: Callable[[str, str], str] | None = None,
    patience: int = 120,
) -> Any:
    """`patience`: seconds that a rank waits for others."""
    write_package(sections, "alone", folder)
    write_package({**sections, "serving": serving}, "shared", folder, change)
    ranks = max(serving.get("tp", 1), serving.get("ep", 1))
    command = [sys.executable, str(SCRIPT), str(folder), "shared", "alone", str(ranks), *scenes]
    environment = {**os.environ, "PATIENCE": str(patience)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def wrong(found: Any, scene: str) -> list[str]:
    """Texts that differ from those that one process wrote alone, and ranks that failed."""
    alone = found["alone"]
    expected = {str(index): text for index, text in enumerate(alone)} | {"9": alone[0][:5], "10": alone[3]}
    failed = [rank for rank in found[scene] if isinstance(rank, str)]
    written = [pair for rank in found[scene] if isinstance(rank, dict) for pair in rank["texts"].items()]
    return failed + [f"text {index}" for index, text in written if text != expected[index]]


def assert_uneven(found: Any, scene: str, guesses: bool) -> None:
    first, *_, last = found[scene]
    assert not wrong(found, scene)
    assert first["idle"] == 0 and last["idle"] > 10, "the last rank had nothing to do for most of the time"
    assert first["hits"] == {"7": 32, "8": 32}, "pages of earlier texts were found"
    assert all((rank["guesses"] > 0) == guesses for rank in found[scene])
    assert all(rank["pages"] for rank in found[scene]), "every page is free at the end"


def assert_dealt(found: Any, scene: str) -> None:
    assert not wrong(found, scene)
    assert len(found[scene][0]["texts"]) == 11 and all(rank["pages"] for rank in found[scene])


def test_two_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    """Greedy and sampled, an idle rank, later arrivals, found prefixes, guesses, a cancelled text, an error."""
    found = played("deepseek", 2, ("uneven", "dealt", "failing"), tmp_path)
    assert_uneven(found, "uneven", guesses=True)
    assert_dealt(found, "dealt")
    assert found["failing"] == ["RankFailed: rank 1 failed: ValueError: planted", "ValueError: planted"]


@pytest.mark.slow
def test_two_ranks_do_without_guesses_and_with_few_pages(tmp_path: Path) -> None:
    found = played("deepseek", 2, ("uneven, without guesses", "crowded"), tmp_path)
    assert_uneven(found, "uneven, without guesses", guesses=False)
    assert_dealt(found, "crowded")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_four_or_two_ranks_of_other_models_do(model: str, tmp_path: Path) -> None:
    ranks = 2 if model == "two mixtures" else 4
    found = played(model, ranks, ("uneven", "dealt", "failing"), tmp_path)
    assert_uneven(found, "uneven", guesses="mtp" in MODELS[model])
    assert_dealt(found, "dealt")
    failed = f"rank {ranks - 1} failed: ValueError: planted"
    assert found["failing"] == [*[f"RankFailed: {failed}"] * (ranks - 1), "ValueError: planted"]


FAULTS = {
    "an idle rank skips the step": ("infer/engine.py", "if not self.working:", "if not plan:"),
    "each rank decides alone whether it guesses": (
        "infer/engine.py",
        "self.speculation.starts(counts)",
        "self.speculation.starts(self.speculation.counts(plan))",
    ),
    "a rank reads the experts beside its own": (
        "checkpoint.py",
        "enumerate(tensor, rank * len(tensor))",
        "enumerate(tensor, max(0, rank * len(tensor) - 1))",
    ),
    "rows come back to other tokens": (
        "infer/decode.py",
        "torch.empty_like(h).index_put((by_expert,), h)",
        "h.index_select(0, by_expert)",
    ),
    "an error is not told": (
        "infer/ranks.py",
        'compare_set(FAILED, "", mine)',
        'compare_set(f"{self.rank}", "", mine)',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    file, text, planted = FAULTS[fault]

    def plant(name: str, source: str) -> str:
        assert name != file or source.count(text) == 1, f"{file} has no {text!r}"
        return source.replace(text, planted) if name == file else source

    scenes = ("failing",) if fault == "an error is not told" else ("uneven",)
    found = played("deepseek", 2, scenes, tmp_path, plant, patience=15)
    caught = wrong(found, scenes[0])
    assert caught if scenes == ("uneven",) else "planted" not in found["failing"][0]


def test_each_rank_reads_its_experts_and_all_that_is_not_one(tmp_path: Path, package_at: Any) -> None:
    """Together every expert once; what is read of a file is what the rank holds."""
    write_package({**MODELS["deepseek"], "serving": {"ep": 4}}, "shared", tmp_path)
    package = package_at(tmp_path / "shared")
    checkpoint, share, model = (package(name) for name in ("checkpoint", "infer.share", "model"))
    whole = model.Model()
    checkpoint.save_hf(whole, tmp_path)
    expected = dict(checkpoint.named_tensors(whole))
    read: list[dict[str, Any]] = []
    for rank in range(4):
        loaded = share.load_share(tmp_path, rank)
        read.append(dict(checkpoint.named_tensors(loaded, rank)))
        assert all(tensor.equal(expected[name]) for name, tensor in read[-1].items())
        held = loaded.state_dict().values()
        assert sum(weight.numel() for weight in held) == sum(tensor.numel() for tensor in read[-1].values())
    experts = [name for rank in read for name in rank if ".experts." in name]
    assert sorted(experts) == sorted(name for name in expected if ".experts." in name)
    assert all({name for name in expected if ".experts." not in name} <= rank.keys() for rank in read)


@pytest.mark.slow
def test_what_is_emitted_is_typed_linted_and_formatted(tmp_path: Path) -> None:
    """As tests/golden/test_static.py has it of packages for one rank."""
    assert_clean(
        {f"shared_{model}": {**MODELS[model], "serving": {"ep": 2}} for model in ("deepseek", "mixtral")}, tmp_path
    )


def assert_clean(packages: dict[str, Sections], folder: Path) -> None:
    """Types, lints and format of packages by name."""
    root, names = Path(__file__).parents[2], list(packages)
    for name, sections in packages.items():
        write_package(sections, name, folder)
    typed = ("mypy", f"--config-file={root / 'tests/golden/mypy.ini'}", *(f"--package={name}" for name in names))
    ruff = ("--isolated", "--no-cache", "--line-length=120", "--target-version=py311")
    linted = ("ruff", "check", *ruff, "--select=E,F,W,I,B,UP,C4,SIM", "--ignore=SIM108", ".")
    for command in (typed, linted, ("ruff", "format", *ruff, "--check", ".")):
        result = subprocess.run(
            (sys.executable, "-m", *command), cwd=folder, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{result.stdout}{result.stderr}"


def test_a_checkpoint_with_other_experts_is_refused(tmp_path: Path, package_at: Any) -> None:
    """A rank looks at the names of all, not only of what it reads."""
    more = copy.deepcopy(MODELS["deepseek"])
    more["ffn"]["moe"]["n_routed_experts"] = 16
    write_package(more, "more", tmp_path)
    write_package({**MODELS["deepseek"], "serving": {"ep": 2}}, "shared", tmp_path)
    larger = package_at(tmp_path / "more")
    larger("checkpoint").save_hf(larger("model").Model(), tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: .*\.experts\.8\."):
        package_at(tmp_path / "shared")("infer.share").load_share(tmp_path, 0)


def test_a_single_process_is_told_how_to_start(tmp_path: Path, package_at: Any) -> None:
    write_package({**MODELS["deepseek"], "serving": {"ep": 2}}, "shared", tmp_path)
    with pytest.raises(SystemExit, match="torchrun --nproc-per-node 2 -m"):
        package_at(tmp_path / "shared")("infer.ranks").Ranks()
