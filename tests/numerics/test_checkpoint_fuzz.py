"""Random damage to checkpoint folders: load_hf gives what a plain read gives, or leaves the model as it was."""

import contextlib
import json
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import reference
from numerics.harness import SINGLE, Compile, Package, Tensors, random_model
from numerics.specs import MTP, spec_text
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK = (16, 24)
LINEAR = {"kind": "fp8_block", "weight_block": list(BLOCK), "activation_block": [1, BLOCK[1]]}
IN_FP8 = {"precision": {"parameters": "fp32", "linear": LINEAR}}
LAYERS = {"layers": [{"repeat": 1, "ffn": "dense"}, {"repeat": 1, "ffn": "moe"}], "ffn__moe__n_routed_experts": 4}
ROUTER = {"score": "softmax", "norm_topk_prob": True}
SPECS = {
    "plain": spec_text(**LAYERS, ffn__moe__router=ROUTER),
    "tied": spec_text(**LAYERS, ffn__moe__router=ROUTER, tie_word_embeddings=True),
    "fp8": spec_text(**LAYERS, ffn__moe__router=ROUTER, **IN_FP8),
    "mtp": spec_text(**LAYERS, ffn__moe__router=ROUTER, mtp=MTP),
    "all": spec_text(**LAYERS, ffn__moe__router=ROUTER, mtp=MTP, tie_word_embeddings=True, **IN_FP8),
}


@dataclass
class Folder:
    """A checkpoint in memory: the tensors and metadata of each file, the index, and what is cut off of files."""

    files: dict[str, Tensors]
    metadata: dict[str, dict[str, str]]
    index: Any
    cuts: dict[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        for name, tensors in self.files.items():
            copies = {tensor: value.clone() for tensor, value in tensors.items()}
            save_file(copies, path / name, self.metadata.get(name, {"format": "pt"}))
            if name in self.cuts:
                (path / name).write_bytes((path / name).read_bytes()[: self.cuts[name]])
        if self.index is not None:
            (path / INDEX).write_text(json.dumps(self.index))

    def place(self, dice: random.Random) -> tuple[Tensors, str]:
        """Some file and some tensor in it."""
        tensors = self.files[dice.choice([name for name in sorted(self.files) if self.files[name]])]
        return tensors, dice.choice(sorted(tensors))

    def put(self, name: str, tensor: Tensor) -> None:
        """A tensor where a writer would have put it."""
        file = sorted(self.files)[0]
        if self.index is not None:
            file = self.index["weight_map"].setdefault(name, file)
        self.files.setdefault(file, {})[name] = tensor


def read(path: Path) -> Folder:
    files = sorted(path.glob("*.safetensors"))
    metadata = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            metadata[file.name] = dict(opened.metadata())
    index = json.loads((path / INDEX).read_text()) if (path / INDEX).exists() else None
    return Folder({file.name: load_file(file) for file in files}, metadata, index)


# --- damage


def drop(folder: Folder, dice: random.Random) -> None:
    tensors, name = folder.place(dice)
    del tensors[name]


def forget(folder: Folder, dice: random.Random) -> None:
    """Out of file and index."""
    tensors, name = folder.place(dice)
    del tensors[name]
    if folder.index is not None:
        folder.index["weight_map"].pop(name, None)


def reshape(folder: Folder, dice: random.Random) -> None:
    tensors, name = folder.place(dice)
    shape = list(tensors[name].shape)
    shapes = [shape[::-1], [*shape, 1], [tensors[name].numel()], [size + 1 for size in shape], shape[1:]]
    tensors[name] = torch.randn(dice.choice(shapes)).to(tensors[name].dtype)


def retype(folder: Folder, dice: random.Random) -> None:
    tensors, name = folder.place(dice)
    wide = [torch.float64, torch.bfloat16, torch.float16]
    narrow = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors[name] = tensors[name].float().to(dice.choice([*wide, *narrow]))


def quantize(folder: Folder, dice: random.Random) -> None:
    """With a scale that fits, or nearly."""
    tensors, name = folder.place(dice)
    tensors[name] = tensors[name].float().to(torch.float8_e4m3fn)
    sizes = [-(-size // edge) for size, edge in zip(tensors[name].shape, BLOCK, strict=False)]
    shape = dice.choice([sizes, sizes, sizes[::-1], [size + 1 for size in sizes], [1], []])
    folder.put(f"{name}_scale_inv", torch.rand(shape) + 0.5)


def add_scale(folder: Folder, dice: random.Random) -> None:
    tensors, name = folder.place(dice)
    folder.put(f"{name}_scale_inv", torch.ones([-(-size // edge) for size, edge in zip(tensors[name].shape, BLOCK)]))  # noqa: B905


def duplicate(folder: Folder, dice: random.Random) -> None:
    """Into another file, without a word in the index."""
    _, name = folder.place(dice)
    folder.files[dice.choice(sorted(folder.files))][name] = torch.randn(2, 3)


def point_elsewhere(folder: Folder, dice: random.Random) -> None:
    if folder.index is not None:
        _, name = folder.place(dice)
        folder.index["weight_map"][name] = dice.choice([*sorted(folder.files), "../x.safetensors", "y.safetensors"])


def truncate(folder: Folder, dice: random.Random) -> None:
    folder.cuts[dice.choice(sorted(folder.files))] = dice.choice([0, 7, 100, 2000, -1])


def swap_files(folder: Folder, dice: random.Random) -> None:
    first, second = dice.choice(sorted(folder.files)), dice.choice(sorted(folder.files))
    folder.files[first], folder.files[second] = folder.files[second], folder.files[first]


def swap_tensors(folder: Folder, dice: random.Random) -> None:
    (ones, one), (others, other) = folder.place(dice), folder.place(dice)
    ones[one], others[other] = others[other], ones[one]


def leave_over(folder: Folder, dice: random.Random) -> None:
    name = dice.choice(["x", "model.layers.9.mlp.up_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
    folder.put(name, torch.ones(2))


def leave_index(folder: Folder, dice: random.Random) -> None:
    file = dice.choice([*sorted(folder.files), "model-00001-of-00002.safetensors"])
    folder.index = folder.index or {"weight_map": dict.fromkeys(folder.files[sorted(folder.files)[0]], file)}


def leave_single(folder: Folder, dice: random.Random) -> None:
    folder.files.setdefault(SINGLE, {name: torch.ones(2) for name in (EMBEDDING, "model.norm.weight")})


def mix(folder: Folder, dice: random.Random) -> None:
    """A shard of another save: the same names and shapes."""
    name = dice.choice(sorted(folder.files))
    folder.files[name] = {
        tensor: (value.float() + 1).to(value.dtype)
        for tensor, value in folder.files[name].items()
        if value.is_floating_point()
    }
    if folder.index is not None:
        folder.metadata[name] = {"format": "pt", "save": "another"}


def untie(folder: Folder, dice: random.Random) -> None:
    folder.put(HEAD, torch.randn(83, 32))


def tie(folder: Folder, dice: random.Random) -> None:
    found = [tensors[EMBEDDING] for tensors in folder.files.values() if EMBEDDING in tensors]
    folder.put(HEAD, found[0].clone() if found else torch.ones(1))


def drop_predictor(folder: Folder, dice: random.Random) -> None:
    for tensors in folder.files.values():
        for name in [name for name in tensors if name.startswith("model.layers.2.")]:
            del tensors[name]
            if folder.index is not None:
                folder.index["weight_map"].pop(name, None)


def break_index(folder: Folder, dice: random.Random) -> None:
    if folder.index is not None:
        folder.index = dice.choice([[], {}, {"weight_map": []}, {**folder.index, "metadata": None}, "x"])


DAMAGE: list[Callable[[Folder, random.Random], None]] = [
    *(drop, forget, reshape, retype, quantize, add_scale, duplicate, point_elsewhere, truncate, swap_files),
    *(swap_tensors, leave_over, leave_index, leave_single, mix, untie, tie, drop_predictor, break_index),
]

# --- what a plain read of the files gives


def plain_read(path: Path, expected: dict[str, Tensor], fp8: bool, tied: bool) -> Tensors:
    """The tensors of a folder by the rules that load_hf documents; an AssertionError where it may not load."""
    if (path / INDEX).exists():
        assert not (path / SINGLE).exists()
        weight_map = json.loads((path / INDEX).read_text())["weight_map"]
        files = {name: load_file(path / name) for name in set(weight_map.values())}
        assert sorted(weight_map) == sorted(name for tensors in files.values() for name in tensors)
        found = {name: files[file][name] for name, file in weight_map.items()}
    else:
        found = load_file(path / SINGLE)
    codes = {name for name, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn}
    values = {}
    for name, tensor in found.items():
        if name in codes:
            assert fp8 and tensor.dim() == 2
            scale = found[f"{name}_scale_inv"]
            assert list(scale.shape) == [-(-size // edge) for size, edge in zip(tensor.shape, BLOCK, strict=True)]
            tensor = reference.dequantised(tensor, scale, BLOCK)
        assert tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        if name.removesuffix("_scale_inv") not in codes or name in codes:
            values[name] = tensor
    head = values.pop(HEAD) if tied and HEAD in values else None
    assert head is None or torch.equal(head.double(), values[EMBEDDING].double())
    for name in [name for name in values if name not in expected]:
        copy = name.startswith("model.layers.2.") and name.endswith(
            (".embed_tokens.weight", ".shared_head.head.weight")
        )
        assert (copy and values[name].shape == expected[EMBEDDING].shape) or name.endswith(".rotary_emb.inv_freq")
    return values


# --- the test


def attempt(package: Package, base: Folder, damage: list[Callable[[Folder, random.Random], None]], seed: int) -> str:
    """Damage a copy of a folder, load it, and compare. 'loaded' or 'refused'."""
    dice = random.Random(seed)
    torch.manual_seed(seed)
    files = {name: dict(tensors) for name, tensors in base.files.items()}
    folder = Folder(files, dict(base.metadata), json.loads(json.dumps(base.index)))
    for one in damage:
        with contextlib.suppress(LookupError, TypeError, AttributeError):  # nothing is left to damage in this way
            one(folder, dice)
    model = random_model(package, torch.float32, seed=9)
    before = package.tensors(model)
    path = Path(tempfile.mkdtemp())
    try:
        folder.write(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                package.checkpoint.load_hf(model, path)
        except (ValueError, FileNotFoundError) as error:
            assert str(path) in str(error)
            assert same(package.tensors(model), before)
            assert damage, "an intact folder was refused"
            return "refused"
        values = plain_read(path, before, "fp8_block" in repr(package.spec.precision), package.spec.tie_word_embeddings)
    finally:
        shutil.rmtree(path)
    predictor = {name for name in before if name.startswith("model.layers.2.")}
    absent = predictor if package.spec.mtp is not None and not predictor & values.keys() else set()
    assert same(package.tensors(model), {n: t if n in absent else values[n].float() for n, t in before.items()})
    return "loaded"


def same(actual: Tensors, expected: Tensors) -> bool:
    return actual.keys() == expected.keys() and all(
        torch.equal(tensor.nan_to_num(7.0), expected[name].nan_to_num(7.0)) for name, tensor in actual.items()
    )


def fuzz(compiled: Compile, folder: Path, cases: int) -> Counter[str]:
    packages = {name: compiled(text) for name, text in SPECS.items()}
    bases = {}
    for name, package in packages.items():
        for size in (10**9, 15_000):
            path = folder / f"{name}-{size}"
            package.checkpoint.save_hf(random_model(package, torch.float32), path, shard_bytes=size)
            bases[name, size] = read(path)
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(
        st.sampled_from(sorted(bases)),
        st.lists(st.sampled_from(DAMAGE), max_size=3),
        st.integers(0, 2**32 - 1),
    )
    def run(which: tuple[str, int], damage: list[Callable[[Folder, random.Random], None]], seed: int) -> None:
        outcomes[attempt(packages[which[0]], bases[which], damage, seed)] += 1

    run()
    print(dict(outcomes))
    return outcomes


def test_damaged_folders_load_as_they_read_or_not_at_all(compiled: Compile, tmp_path: Path) -> None:
    outcomes = fuzz(compiled, tmp_path, 100)
    assert outcomes["loaded"] >= 10 and outcomes["refused"] >= 10


@pytest.mark.slow
def test_two_thousand_damaged_folders(compiled: Compile, tmp_path: Path) -> None:
    outcomes = fuzz(compiled, tmp_path, 2000)
    assert outcomes["loaded"] >= 200 and outcomes["refused"] >= 200
