"""What backward makes again changes no number, and what is kept is what the planner prices."""

import gc
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dsc.compiler.driver import build
from dsc.compiler.graph.saved import trace
from dsc.compiler.planner.parts.recompute import kept
from dsc.spec.model import ModelSpec

BATCH, LENGTH = 2, 24
SMALL = 16  # bytes
ALL = ["experts", "mla_up_proj", "norms", "swiglu"]
SETS = {
    "deepseek": [[], *([one] for one in ALL), ["norms", "swiglu"], ALL, ["full"]],
    "mixtral": [["experts"], ["experts", "norms", "swiglu"], ["full"]],
    "llama": [["norms", "swiglu"], ["full"]],
}
CASES = [(model, recompute) for model, sets in SETS.items() for recompute in sets]
CLUSTERS = {"plain": ({"kind": "cpu", "nodes": 2}, 2, "fp32"), "kernels": ({"kind": "h100", "nodes": 1}, 8, "bf16")}
IN_FP8 = [["norms"], ["swiglu"], ["norms", "swiglu"], ["mla_up_proj", "norms", "swiglu"], ALL]
KEPT_ANYWAY = {
    "a copy of what is dropped is kept": (
        "kernels/fp8_linear_again.py",
        "ctx.save_for_backward(x, *weights)",
        "ctx.save_for_backward(x.clone(), *weights)",
    ),
    "codes are kept": (
        "kernels/fp8_linear_again.py",
        "    ys = _forward(x.reshape(-1, x.shape[-1]), weights)",
        "    from .fp8_linear import _training\n\n    ys, _, _ = _training(x.reshape(-1, x.shape[-1]), weights)",
    ),
}
OTHERWISE = {
    "what is dropped is not made again": (
        "train/recompute.py",
        "self.made = numbered(self.function(*inputs))",
        "self.made = numbered(torch.zeros_like(self.function(*inputs)))",
    ),
    "it is made of another input": (
        "train/recompute.py",
        "self.made = numbered(self.function(*inputs))",
        "self.made = numbered(self.function(*(one.flip(-1) for one in inputs)))",
    ),
    "rows are encoded in the place of others": (
        "kernels/fp8_linear_again.py",
        "_, _, x_q, x_scale = quantize_rows_and_columns(padded(x))",
        "_, _, x_q, x_scale = quantize_rows_and_columns(padded(x.roll(1, 0)))",
    ),
}


class Alive(TorchDispatchMode):
    """Memory that came to be while it was on; weights and buffers are there before."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.before = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self.before:
                    self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return results

    def sizes(self) -> Counter[int]:
        gc.collect()
        return Counter(size for storage, size in self.seen.values() if size > SMALL and not storage.expired())


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Modules of a package in tmp_path / name."""

    def module(name: str, package: str, path: str) -> Any:
        monkeypatch.syspath_prepend(str(tmp_path / name))
        for known in [known for known in sys.modules if known.partition(".")[0] == package]:
            del sys.modules[known]
        return importlib.import_module(f"{package}.{path}")

    yield module


def specified(placed_spec: Any, model: str, recompute: list[str], lowering: str) -> dict[str, Any]:
    cluster, ranks, dtype = CLUSTERS[lowering]
    spec: dict[str, Any] = placed_spec(model, {"dp": ranks, "recompute": recompute})
    return {**spec, "cluster": cluster, "precision": {"parameters": dtype, "kv_cache": dtype}}


@pytest.fixture
def kept_and_priced(package_of: Any, imported: Any, tmp_path: Path) -> Any:
    """Of every kind of layer: how many tensors of which size are kept of its forward, and how many the plan prices."""

    def of_spec(spec: dict[str, Any], change: Any = None) -> list[tuple[Counter[int], Counter[int]]]:
        package, recompute = package_of(spec, tmp_path / "one", change), spec["placement"]["recompute"]
        module = imported("one", package, "model")
        drops = recompute not in ([], ["full"])
        remade = imported("one", package, "train.recompute").dropping if drops else torch.enable_grad
        return list(kept_by_layers(spec, recompute, module, remade))

    return of_spec


def kept_by_layers(
    spec: dict[str, Any], recompute: list[str], module: Any, remade: Any
) -> Iterator[tuple[Counter[int], Counter[int]]]:
    plain = {**spec, "placement": {**spec["placement"], "recompute": []}}
    graph = build(ModelSpec.model_validate(plain)).training
    dtype = torch.float32 if spec["precision"].get("parameters") == "fp32" else torch.bfloat16
    root = module.Model().to(dtype)
    for kind, layer in {type(layer).__name__: layer for layer in root.layers}.items():
        leaf = torch.randn(BATCH, LENGTH, module.HIDDEN_SIZE, dtype=dtype, requires_grad=True)
        alive = Alive(layer)
        with alive, remade():
            x = leaf * 1
            rope = module.rotary_table(LENGTH, leaf)
            rope = module.spread_pairs(rope) if hasattr(module, "spread_pairs") else rope
            results = layer(x, rope)
        graph_of = [result.grad_fn for result in (results if isinstance(results, tuple) else (results,))]
        del x, rope, results
        found = kept(trace(graph, f"{kind}.forward"), recompute)
        sizes = {"B": BATCH, "S": LENGTH}
        priced = Counter(storage.type.bytes.value(sizes) for storage in found.storages)
        yield alive.sizes(), Counter({size: count for size, count in priced.items() if size > SMALL})
        del graph_of


@pytest.mark.parametrize("lowering", CLUSTERS)
@pytest.mark.parametrize(("model", "recompute"), CASES, ids=str)
def test_what_is_kept_is_what_the_plan_prices(
    model: str, recompute: list[str], lowering: str, placed_spec: Any, kept_and_priced: Any
) -> None:
    found = kept_and_priced(specified(placed_spec, model, recompute, lowering))
    assert found and all(kept == priced for kept, priced in found)


@pytest.mark.parametrize("recompute", [[], *IN_FP8], ids=str)
def test_so_it_is_beside_products_in_fp8(recompute: list[str], fp8_spec: Any, kept_and_priced: Any) -> None:
    found = kept_and_priced(fp8_spec({"dp": 2, "recompute": recompute}))
    assert found and all(kept == priced for kept, priced in found)


def test_no_codes_are_kept_of_what_norms_make_again(fp8_spec: Any, kept_and_priced: Any) -> None:
    """A byte for each element that a product reads of a norm, which are the inputs of attention and of feed-forwards
    and the latents of queries and keys: of all that are kept, those of attention's result alone are left."""
    spec = fp8_spec({"dp": 2, "recompute": ["norms"]})
    rows, a_block = BATCH * LENGTH, 128
    (dense, _), *_ = kept_and_priced(spec)
    of_result = spec["attention"]["num_attention_heads"] * spec["attention"]["v_head_dim"] * a_block
    assert rows < a_block, "codes lie in whole blocks of rows, which tells them apart by size"
    of_hidden = spec["hidden_size"] * a_block
    assert dense[of_result] == 1 and dense[of_hidden] == 0


@pytest.mark.parametrize("fault", [*KEPT_ANYWAY, "the ledger counts codes"])
def test_a_planted_fault_keeps_or_prices_otherwise(
    fault: str, fp8_spec: Any, kept_and_priced: Any, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault not in KEPT_ANYWAY:
        monkeypatch.setattr("dsc.compiler.planner.parts.recompute._encoding_again", lambda step: step)
    found = kept_and_priced(
        fp8_spec({"dp": 2, "recompute": ["norms"]}), planted(*KEPT_ANYWAY[fault]) if fault in KEPT_ANYWAY else None
    )
    assert any(kept != priced for kept, priced in found)


@pytest.mark.parametrize(("model", "recompute"), [case for case in CASES if case[1]], ids=str)
def test_gradients_are_those_of_keeping_everything_bit_by_bit(
    model: str, recompute: list[str], placed_spec: Any, same_step: Any
) -> None:
    assert same_step(*(placed_spec(model, {"dp": 2, "recompute": chosen}) for chosen in ([], recompute)))


@pytest.fixture
def same_step(package_of: Any, imported: Any, tmp_path: Path) -> Any:
    """Whether two specs take one step in one process bit by bit; the files of the second changed by a function."""

    def same(kept: dict[str, Any], again: dict[str, Any], change: Any = None) -> bool:
        found = []
        for name, spec, changed in (("kept", kept, None), ("again", again, change)):
            package = package_of(spec, tmp_path / name, changed)
            single = imported(name, package, "train.single").Single(torch.device("cpu"), torch.float64, 0, 4, 2)
            tokens = torch.arange(4 * 32).view(4, 32) % 251
            losses = single.step(tokens, tokens.roll(-1, 1))
            loads = [buffer.tolist() for buffer in single.model.buffers()]
            found.append((losses, {name: weight.grad for name, weight in single.named_parameters()}, loads))
        (losses, gradients, loads), (losses_again, gradients_again, loads_again) = found
        gradients_are = all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())
        return losses == losses_again and loads == loads_again and gradients_are

    return same


@pytest.mark.parametrize("recompute", IN_FP8, ids=str)
def test_so_they_are_beside_products_in_fp8(recompute: list[str], fp8_spec: Any, same_step: Any) -> None:
    assert same_step(*(fp8_spec({"dp": 2, "recompute": chosen}) for chosen in ([], recompute)))


@pytest.mark.parametrize("fault", OTHERWISE)
def test_a_planted_fault_changes_a_gradient(fault: str, fp8_spec: Any, same_step: Any, planted: Any) -> None:
    specs = (fp8_spec({"dp": 2, "recompute": chosen}) for chosen in ([], ["norms", "swiglu"]))
    assert not same_step(*specs, planted(*OTHERWISE[fault]))


RANKS = [
    ({"tp": 2}, ["norms", "swiglu"]),
    ({"dp": 2, "ep": 2, "micro_batch": 4}, ["experts", "norms", "swiglu"]),
    ({"pp": 2, "vpp": 2, "schedule": "zbv", "micro_batch": 4}, ["norms", "swiglu"]),
    ({"pp": 2, "micro_batch": 4}, ["mla_up_proj", "norms", "swiglu"]),
    ({"cp": 2, "micro_batch": 4}, ["norms"]),
]


@pytest.mark.parametrize(
    ("layout", "recompute"), [RANKS[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in RANKS[1:])], ids=str
)
def test_on_ranks_too(
    layout: dict[str, Any],
    recompute: list[str],
    fp8_spec: Any,
    stepped: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses, norms, digests of gradients and biases of two steps, and so of a step after an update."""
    monkeypatch.setenv("STEPS", "2")
    found = []
    for chosen in ([], recompute):
        spec = fp8_spec({**layout, "recompute": chosen})
        spec["layers"][1]["repeat"] = 3 if "pp" in layout else 1
        assert build(ModelSpec.model_validate(spec)).step.sharing is not None
        found.append(stepped(spec, tmp_path / str(len(found)), "float64")["ranks"])
    assert found[0] == found[1]
