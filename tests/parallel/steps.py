"""Run in a process of its own: some steps of an emitted trainer on the ranks of its plan, and the same on one process.

    python steps.py FOLDER PACKAGE DTYPE

prints the losses of every step, gradients' norms, held-out losses, routers' overloads and biases of both as JSON, and
of every weight's first gradient two numbers that follow from all of it. Ranks are forked, so that each does not import
torch anew; nothing has run threads before. COMPILED in the environment is a backend that compiles the ranks' layers.
"""

import importlib
import json
import os
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

BATCH, LENGTH, STEPS = 16, 32, int(os.environ.get("STEPS", "5"))


def batch(step: int, apart: bool) -> tuple[Tensor, ...]:
    """Labels are missing unevenly: some sequences have none, so that some ranks have fewer than others. With the
    numbers of documents, of one token to all of a row, where these are kept apart."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(256, (BATCH, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    labels[:5] = -100
    if not apart:
        return ids[:, :-1], labels
    begins = torch.rand(ids.shape, generator=generator) < torch.rand((BATCH, 1), generator=generator) / 2
    documents = begins.long().cumsum(1)
    return ids[:, :-1], labels.where(documents[:, 1:] == documents[:, :-1], -100), documents[:, :-1]


def steps(layout: Any, package: str) -> dict[str, Any]:
    optimizer = optimizer_module(package).make_optimizer(layout.named_parameters(), 0.1)
    apart = find_spec(f"{package}.train.document_layers") is not None
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    rows = []
    gradients: dict[str, list[float]] = {}
    for step in range(STEPS):
        given = [tensor[layout.rows] for tensor in batch(step, apart)]
        if hasattr(layout, "mtp_weight"):
            layout.mtp_weight = optimizer_module(package).mtp_loss_weight(step * BATCH * LENGTH)
        held_out = layout.evaluate(*given)
        losses = layout.step(*given)
        gradients = gradients or {name: digest(layout, name, weight) for name, weight in layout.named_parameters()}
        norm = layout.clip(0.5)
        optimizer.step()
        optimizer.zero_grad()
        overload = layout.update_selection_bias() if hasattr(layout, "update_selection_bias") else torch.zeros(())
        values = [*losses.values(), norm, overload, *held_out.values()]
        rows.append([float(value) for value in values])
    biases = {name: buffer.tolist() for name, buffer in layout.named_buffers()}
    return {"rows": rows, "biases": biases, "gradients": gradients}


def digest(layout: Any, name: str, weight: Tensor) -> list[float]:
    """Of a gradient, summed over all ranks: its norm, and its product with a fixed vector, in parts of the norm.
    Zeros where there is none."""
    if weight.grad is None:
        return [0.0, 0.0]
    gradient = layout.whole(name, weight.grad)
    if isinstance(getattr(gradient, "_local_tensor", None), LocalShardsWrapper):
        whole = put_together(gradient)
    else:
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    flat = whole.flatten().double()
    norm = flat.norm()
    return [float(norm), float(flat @ torch.arange(len(flat)).double().cos() / norm)]


def put_together(parts: DTensor) -> Tensor:
    """A whole tensor of which every rank has pieces, each with the place where it begins."""
    whole = torch.zeros(parts.shape, dtype=parts.dtype)
    local: Any = parts._local_tensor
    for piece, place in zip(local.local_shards(), local.local_offsets(), strict=True):
        whole[tuple(slice(begin, begin + size) for begin, size in zip(place, piece.shape, strict=True))] += piece
    for name in parts.device_mesh.mesh_dim_names or ():
        dist.all_reduce(whole, group=parts.device_mesh.get_group(name))
    return whole


def optimizer_module(package: str) -> Any:
    return importlib.import_module(f"{package}.train.optimizer")


def rank_main(rank: int, world: int, folder: str, package: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    parallel = importlib.import_module(f"{package}.train.parallel")
    layout = parallel.Parallel(torch.device("cpu"), dtype, 0, BATCH, LENGTH)
    if backend := os.environ.get("COMPILED"):
        compile_with(layout, backend)
    found = steps(layout, package)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def compile_with(layout: Any, backend: str) -> None:
    given = torch.compile
    torch.compile = partial(given, backend=backend)  # type: ignore[assignment]
    layout.compile()
    torch.compile = given


def main(folder: str, package: str, dtype_name: str) -> None:
    sys.path.insert(0, folder)
    dtype = getattr(torch, dtype_name)
    world = importlib.import_module(f"{package}.train.plan").WORLD
    with tempfile.TemporaryDirectory() as results:
        mp.start_processes(rank_main, (world, results, package, dtype), nprocs=world, start_method="fork")
        ranks = [json.loads(Path(results, f"{rank}.json").read_text()) for rank in range(world)]
    single = importlib.import_module(f"{package}.train.single").Single(torch.device("cpu"), dtype, 0, BATCH, 4)
    print(json.dumps({"one": steps(single, package), "ranks": ranks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
