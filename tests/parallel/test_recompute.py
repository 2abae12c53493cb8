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


@pytest.mark.parametrize("lowering", CLUSTERS)
@pytest.mark.parametrize(("model", "recompute"), CASES, ids=str)
def test_what_is_kept_is_what_the_plan_prices(
    model: str, recompute: list[str], lowering: str, placed_spec: Any, package_of: Any, imported: Any, tmp_path: Path
) -> None:
    spec = specified(placed_spec, model, recompute, lowering)
    package = package_of(spec, tmp_path / "one")
    module = imported("one", package, "model")
    drops = recompute not in ([], ["full"])
    remade = imported("one", package, "train.recompute").dropping if drops else torch.enable_grad
    graph = build(ModelSpec.model_validate(specified(placed_spec, model, [], lowering))).training
    dtype = torch.float32 if lowering == "plain" else torch.bfloat16
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
        assert alive.sizes() == Counter({size: count for size, count in priced.items() if size > SMALL}), kind
        del graph_of


@pytest.mark.parametrize(("model", "recompute"), [case for case in CASES if case[1]], ids=str)
def test_gradients_are_those_of_keeping_everything_bit_by_bit(
    model: str, recompute: list[str], placed_spec: Any, package_of: Any, imported: Any, tmp_path: Path
) -> None:
    found = []
    for name, chosen in (("kept", []), ("again", recompute)):
        package = package_of(placed_spec(model, {"dp": 2, "recompute": chosen}), tmp_path / name)
        single = imported(name, package, "train.single").Single(torch.device("cpu"), torch.float64, 0, 4, 2)
        tokens = torch.arange(4 * 32).view(4, 32) % 251
        losses = single.step(tokens, tokens.roll(-1, 1))
        loads = [buffer.tolist() for buffer in single.model.buffers()]
        found.append((losses, {name: weight.grad for name, weight in single.named_parameters()}, loads))
    (losses, gradients, loads), (losses_again, gradients_again, loads_again) = found
    assert losses == losses_again and loads == loads_again
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())
