"""Run in a process of its own: what a step sends between ranks that share sequences, in bytes.

    python context.py FOLDER PACKAGE

The process group answers every collective at once, so one rank is enough; what it calls is what it would send.
"""

import importlib
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(TorchDispatchMode):
    """Bytes of whole sequences that functional collectives gather or scatter; FSDP's are of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"all_gather_into_tensor": 0, "reduce_scatter_tensor": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        if space == "_c10d_functional" and name in self.bytes:
            whole: Tensor = result if name.startswith("all_gather") else args[0]
            self.bytes[name] += whole.nbytes
        return result


def visible(new: int, seen: int) -> Tensor:
    return torch.ones(new, seen, dtype=torch.bool).tril(seen - new)


def main(folder: str, package: str) -> None:
    sys.path.insert(0, folder)
    train = f"{package}.train"
    plan, module = importlib.import_module(f"{train}.plan"), importlib.import_module(f"{train}.parallel")
    length = importlib.import_module(f"{package}.dims").SEQUENCE_LENGTH
    if hasattr(plan, "CP"):  # PyTorch's own is made in a way that no dispatch mode allows
        attending = importlib.import_module(f"{train}.{'tensor' if hasattr(plan, 'TP') else 'context'}")
        vars(attending)["causal_lower_right"] = visible
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=plan.WORLD)
    parallel = module.Parallel(torch.device("cpu"), torch.float32, 0, plan.BATCH_SIZE, length)
    tokens = torch.zeros(parallel.rows.stop - parallel.rows.start, length, dtype=torch.int64)
    with Sent() as sent:
        parallel.step(tokens, tokens)
    print(json.dumps(sent.bytes))


if __name__ == "__main__":
    main(*sys.argv[1:])
