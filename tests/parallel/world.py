"""Run in a process of its own: ranks of a plan that are not there, each built in turn, without memory.

    python world.py FOLDER PACKAGE RANKS_OF_A_PIPELINE...

prints what each holds as JSON. The process group answers every collective and the weights are on the meta device, so
that 2,048 ranks of DeepSeek-V3 fit on a laptop; what is built is what the emitted trainer builds.
"""

import importlib
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.testing._internal.distributed.fake_pg import FakeStore


def held(parallel: Any, optimizer: Any) -> dict[str, Any]:
    """Numbers of the weights, by how many ranks share each; bytes of this rank's shares; actions of its schedule."""
    weights = [weight for _, weight in parallel.named_parameters()]
    shared: dict[int, int] = {}
    for weight in weights:
        size = weight.device_mesh.size()
        shared[size] = shared.get(size, 0) + weight.numel()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "shared": shared,
        "master": sum(weight.to_local().nbytes for weight in weights),
        "moments": sum(moment.to_local().nbytes for moment in moments),
        "actions": sum(action is not None for action in parallel.schedule.pipeline_order[parallel.mesh.pp.rank()]),
    }


def main(folder: str, package: str, *ranks: str) -> None:
    sys.path.insert(0, folder)
    train = f"{package}.train"
    plan, module = importlib.import_module(f"{train}.plan"), importlib.import_module(f"{train}.parallel")
    length = importlib.import_module(f"{package}.dims").SEQUENCE_LENGTH
    module.fill = lambda *_: None  # weights stay on the meta device,
    FSDPParamGroup._validate_no_meta_params = lambda self: None  # type: ignore[method-assign]  # as far as FSDP lets them
    found = []
    for rank in map(int, ranks):
        dist.init_process_group("fake", store=FakeStore(), rank=rank * (plan.WORLD // plan.PP), world_size=plan.WORLD)
        parallel = module.Parallel(torch.device("cpu"), torch.bfloat16, 0, plan.BATCH_SIZE, length)
        optimizer = importlib.import_module(f"{train}.optimizer").make_optimizer(parallel.named_parameters(), 0.1)
        found.append(held(parallel, optimizer))
        dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
