"""Run in a process of its own: one step of an emitted trainer on the ranks of its plan; the most that each rank holds,
and what it gathers and reduces.

    python memory.py FOLDER PACKAGE BATCH LENGTH DTYPE

prints bytes of each rank: the most held, and of whole weights gathered and whole gradients reduced. A step before it
makes the optimizer's state, so that it is there as in every later one.
"""

import gc
import importlib
import json
import sys
import tempfile
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Bytes of all memory that tensors have, at the fullest moment; FSDP frees memory without freeing tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.bytes = 0
        self.moved = {"_allgather_base_": 0, "_reduce_scatter_base_": 0}
        for known in gc.get_objects():
            if isinstance(known, Tensor) and known.device.type == "cpu":
                self.see(known)

    def see(self, tensor: Tensor) -> None:
        for inner in ("_local_tensor", "elem"):  # of a DTensor, and of a collective's result that is waited for later
            tensor = getattr(tensor, inner, tensor)
        storage = tensor.untyped_storage()
        self.alive[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if (name := func._schema.name.removeprefix("c10d::")) in self.moved:
            self.moved[name] += max(args[0].nbytes, args[1].nbytes)
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.device.type == "cpu":
                self.see(result)
        held = 0
        for key, reference in list(self.alive.items()):
            storage = reference()
            if storage is None:
                del self.alive[key]
            else:
                held += storage.nbytes()
        self.bytes = max(self.bytes, held)
        return results


def batch_of(rows: slice, batch: int, length: int, apart: bool) -> list[Tensor]:
    ids = torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(0))[rows]
    documents = (torch.arange(length) >= length // 3).long().repeat(len(ids), 1)
    return [ids[:, :-1].clone(), ids[:, 1:].clone(), *([documents] if apart else [])]


def measured(layout: Any, make_optimizer: Any, batch: int, length: int, apart: bool) -> tuple[int, ...]:
    """`apart`: the package keeps documents apart, of which every row holds two."""
    optimizer = make_optimizer(layout.named_parameters(), 0.1)
    given = batch_of(layout.rows, batch, length, apart)

    def step() -> None:
        layout.step(*given)
        layout.clip(0.5)
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()
    with Peak() as peak:
        step()
    return peak.bytes, *peak.moved.values()


def unseen(cls: type[CausalBias], *_: Any) -> Any:
    """A mask that no dispatch mode has seen made: of a tensor that one has seen, torch makes no subclass."""
    with _disable_current_modes():
        return Tensor.__new__(cls)


def rank_main(rank: int, world: int, folder: str, package: str, batch: int, length: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    CausalBias.__new__ = unseen  # type: ignore[assignment]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    parallel = importlib.import_module(f"{package}.train.parallel")
    layout = parallel.Parallel(torch.device("cpu"), dtype, 0, batch, length)
    make_optimizer = importlib.import_module(f"{package}.train.optimizer").make_optimizer
    apart = find_spec(f"{package}.train.document_layers") is not None
    Path(folder, f"{rank}.json").write_text(json.dumps(measured(layout, make_optimizer, batch, length, apart)))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str, package: str, batch: str, length: str, dtype: str) -> None:
    sys.path.insert(0, folder)
    world = importlib.import_module(f"{package}.train.plan").WORLD
    with tempfile.TemporaryDirectory() as results:
        arguments = (world, results, package, int(batch), int(length), getattr(torch, dtype))
        mp.start_processes(rank_main, arguments, nprocs=world, start_method="fork")
        print(json.dumps([json.loads(Path(results, f"{rank}.json").read_text()) for rank in range(world)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
