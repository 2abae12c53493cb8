"""Run in a process of its own: what the ranks of a package send each other of rows for experts in a step, in bytes.

    python exchanged.py FOLDER PACKAGE [DTYPE]

Ranks are forked. Each counts what goes into its all-to-alls: rows as wide as a token, and the weights of rows; and what
leaves it by the module that stands in for DeepEP, if that is there.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

BATCH, LENGTH = 16, 32


class Sent(TorchDispatchMode):
    """Bytes that functional all-to-alls are given: of rows as wide as a hidden state, and of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"rows": 0, "weights": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "_c10d_functional::all_to_all_single" and args[0].dim() == 2:
            self.bytes["rows" if args[0].shape[1] > 1 else "weights"] += args[0].nbytes
        return func(*args, **(kwargs or {}))


def rank_main(rank: int, world: int, folder: str, package: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    module = importlib.import_module(f"{package}.train.parallel")
    parallel = module.Parallel(torch.device("cpu"), dtype, 0, BATCH, LENGTH)
    ids = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))[parallel.rows]
    with Sent() as sent:
        parallel.step(ids[:, :-1], ids[:, 1:])
    by_deepep = {"by_deepep": module.sent["rows"]} if (module := sys.modules.get("deep_ep")) else {}
    Path(folder, f"{rank}.json").write_text(json.dumps(sent.bytes | by_deepep))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str, package: str, dtype: str = "float32") -> None:
    sys.path.insert(0, folder)
    world = importlib.import_module(f"{package}.train.plan").WORLD
    with tempfile.TemporaryDirectory() as results:
        mp.start_processes(
            rank_main, (world, results, package, getattr(torch, dtype)), nprocs=world, start_method="fork"
        )
        print(json.dumps([json.loads(Path(results, f"{rank}.json").read_text()) for rank in range(world)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
