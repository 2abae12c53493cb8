"""Run in a process of its own: the main loss and the routers' overload of every step of an emitted trainer.

    python curves.py FOLDER PACKAGE DTYPE STEPS [ranks]

prints them as JSON, on one process or on the ranks of the package's plan; the text is one that can be learnt. SKEW in
the environment is what every router's bias for its first two experts starts above the others.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

BATCH, LENGTH = 8, 32


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Arithmetic sequences: where one starts and how it goes on is drawn, all else follows."""
    generator = torch.Generator().manual_seed(step)
    first, stride = (torch.randint(1, size, (BATCH, 1), generator=generator) for size in (251, 8))
    ids = (first + stride * torch.arange(LENGTH + 1)) % 251
    return ids[:, :-1], ids[:, 1:]


def curve(layout: Any, package: str, steps: int) -> list[list[float]]:
    optimizer = importlib.import_module(f"{package}.train.optimizer").make_optimizer(layout.named_parameters(), 0.1)
    for _, bias in layout.named_buffers():
        bias[:2] += float(os.environ.get("SKEW", "0"))
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        losses = layout.step(*(tensor[layout.rows] for tensor in batch(step)))
        layout.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append([losses["main"].item(), layout.update_selection_bias().item()])
    return found


def rank_main(rank: int, world: int, folder: str, package: str, dtype: torch.dtype, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    parallel = importlib.import_module(f"{package}.train.parallel")
    layout = parallel.Parallel(torch.device("cpu"), dtype, 0, BATCH, LENGTH)
    Path(folder, f"{rank}.json").write_text(json.dumps(curve(layout, package, steps)))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str, package: str, dtype_name: str, steps: str, *ranks: str) -> None:
    sys.path.insert(0, folder)
    dtype = getattr(torch, dtype_name)
    if not ranks:
        single = importlib.import_module(f"{package}.train.single").Single(torch.device("cpu"), dtype, 0, BATCH, 4)
        print(json.dumps(curve(single, package, int(steps))))
        return
    world = importlib.import_module(f"{package}.train.plan").WORLD
    with tempfile.TemporaryDirectory() as results:
        mp.start_processes(rank_main, (world, results, package, dtype, int(steps)), nprocs=world, start_method="fork")
        print(Path(results, "0.json").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
