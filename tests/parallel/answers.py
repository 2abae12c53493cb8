"""Run in a process of its own: some steps of an emitted trainer on ranks, again with a pause, and in one process.

    python answers.py FOLDER PACKAGE TRAINER RANKS STEPS FLAGS...

prints as JSON the metrics of each, and of every weight's first gradient and of the weights at the end two numbers that
follow from all of it. The run with a pause ends a step early and is resumed. Ranks are forked, so that each does not
import torch anew; nothing has run threads before. FOLDER/start has the weights to begin with.
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

Digests = dict[str, list[float]]


def digest(tensor: Tensor) -> list[float]:
    """Its norm, and its product with a fixed vector."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    flat = whole.detach().flatten().double()
    return [float(flat.norm()), float(flat @ torch.arange(len(flat)).double().cos())]


def train(folder: Path, package: str, trainer: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """What a run leaves behind, as one of its ranks sees it."""
    layouts, found = importlib.import_module(f"{package}.train.layout"), {}
    gradients: Digests = {}
    made = layouts.make_layout

    def watched(*args: Any) -> Any:
        layout = made(*args)
        clip = layout.clip

        def clipped(largest: float) -> Tensor:
            if not gradients:
                learned = [(name, w) for name, w in layout.named_parameters() if w.grad is not None]
                gradients.update({name: digest(layout.whole(name, w.grad)) for name, w in learned})
            return clip(largest)

        layout.clip = clipped
        found["layout"] = layout
        return layout

    module = importlib.import_module(f"{package}.train.{trainer}")
    user = importlib.import_module(f"{package}.train.learner") if trainer == "grpo" else module
    user.make_layout = watched
    metrics = folder / "metrics.jsonl"
    kept = {"grpo": ["--checkpoint", folder / "start"], "sft": ["--checkpoint", folder / "run"]}
    sys.argv = [trainer, *flags, *map(str, kept[trainer]), "--steps", str(steps), "--metrics", str(metrics)]
    sys.argv += ["--dtype", "float64"]
    leave = module.Run.loop

    def loop(*args: Any) -> None:
        leave(*args)
        layout = found["layout"]
        found["weights"] = {name: digest(layout.whole(name, w)) for name, w in layout.named_parameters()}
        found["biases"] = {name: buffer.tolist() for name, buffer in layout.named_buffers()}

    module.Run.loop = loop
    module.learn(module.parse_arguments())
    module.Run.loop, user.make_layout = leave, made
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return {"rows": rows, "gradients": gradients, "weights": found["weights"], "biases": found["biases"]}


def rank_main(rank: int, world: int, port: int, folder: str, *args: Any) -> None:
    torch.set_num_threads(1)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in here.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(train(Path(folder), *args)))


def on_ranks(world: int, folder: Path, *args: Any) -> list[dict[str, Any]]:
    port = 20000 + os.getpid() % 20000
    mp.start_processes(rank_main, (world, port, str(folder), *args), nprocs=world, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def main(folder: str, package: str, trainer: str, ranks: str, steps: str, *flags: str) -> None:
    sys.path.insert(0, folder)
    importlib.import_module(f"{package}.train.{trainer}")
    world, last = int(ranks), int(steps)
    with tempfile.TemporaryDirectory() as name:
        shared, paused, alone = (Path(name, run) for run in ("shared", "paused", "alone"))
        for run in (shared, paused, alone):
            shutil.copytree(Path(folder, "start"), run / "start")  # where grpo keeps its run
        found = {"ranks": on_ranks(world, shared, package, trainer, last, list(flags))}
        on_ranks(world, paused, package, trainer, last - 1, list(flags))
        found["resumed"] = on_ranks(world, paused, package, trainer, last, [*flags, "--resume"])
        print(json.dumps({**found, "one": train(alone, package, trainer, last, list(flags))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
