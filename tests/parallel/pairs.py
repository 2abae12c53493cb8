"""Run in a process of its own: a step of an emitted trainer on the ranks of its plan, and what happens in its pairs.

    python pairs.py FOLDER PACKAGE

prints for every rank, as JSON, its actions, torch's own for the same schedule, and for each pair in order: B and F
where a side's turn begins, "start N" and "wait N" of all-to-alls, "segment" of backward,
"weights" that were put off; of each W its stage, its micro-batch and the bytes of numbers that waited for it; and how
often each thing was made again that was.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from steps import BATCH, LENGTH, batch
from torch.distributed.pipelining.schedules import OVERLAP_F_B, ScheduleDualPipeV

EVENTS: list[str] = []
NUMBERS = count()


def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        EVENTS.append(name)
        return function(*args)

    return run


def noting_start(start: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        number = next(NUMBERS)
        EVENTS.append(f"start {number}")
        return noted(f"wait {number}", start(*args))

    return run


def in_turn(name: str, side: Any) -> Any:
    """A side that notes where its turns begin."""
    while True:
        EVENTS.append(name)
        try:
            next(side)
        except StopIteration as end:
            return end.value
        yield


def waiting(tape: Any) -> int:
    """Bytes of the numbers, other than weights, that gradients hold which are put off."""
    cells = (cell.cell_contents for add in tape.put_off for cell in add.__closure__)
    held = [one for one in cells if not isinstance(one, torch.nn.Parameter) and one.is_floating_point()]
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in held}.values())


def watch(package: str) -> tuple[list[list[str]], list[tuple[int, int, int]]]:
    """The events of each pair, and what waits for each W, filled in as the package runs."""
    tape = importlib.import_module(f"{package}.train.tape")
    overlap = importlib.import_module(f"{package}.train.overlap")
    parallel = importlib.import_module(f"{package}.train.parallel")
    tape.Wire.start = noting_start(tape.Wire.start)
    tape.Tape.segment = noted("segment", tape.Tape.segment)
    tape.Tape.run_put_off = noted("weights", tape.Tape.run_put_off)
    found: list[list[str]] = []

    def take_turns(*sides: Any) -> Any:
        names = ("B", "F") if len(sides) == 2 else ("alone",)
        return tape.take_turns(*(in_turn(name, side) for name, side in zip(names, sides, strict=True)))

    def run_pair(action: Any, context: Any, run: Callable[..., Any] = parallel.run_pair) -> None:
        EVENTS.clear()
        run(action, context)
        found.append(list(EVENTS))

    waited: list[tuple[int, int, int]] = []

    def weights(stage: Any, micro_batch: int, last_backward: bool = False) -> None:
        waited.append((stage.stage_index, micro_batch, waiting(stage.put_off[micro_batch])))
        run_weights(stage, micro_batch)

    run_weights = overlap.OverlapStage.backward_weight_one_chunk
    overlap.take_turns, parallel.run_pair, overlap.OverlapStage.backward_weight_one_chunk = (
        take_turns,
        run_pair,
        weights,
    )
    return found, waited


def count_makes(package: str) -> list[int]:
    """Of each function that runs again in backward, how often, filled in as the package runs."""
    if find_spec(f"{package}.train.recompute") is None:
        return []
    recompute = importlib.import_module(f"{package}.train.recompute")
    times: list[int] = []

    def counting(make: Callable[..., None]) -> Callable[..., None]:
        def run(maker: Any, *inputs: Any) -> None:
            maker.number = getattr(maker, "number", len(times))
            times.extend([0] * (maker.number == len(times)))
            times[maker.number] += 1
            make(maker, *inputs)

        return run

    for kind in (recompute.Maker, recompute.MethodMaker):
        kind.make = counting(kind.make)
    return times


def rank_main(rank: int, world: int, folder: str, package: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    (found, waited), times = watch(package), count_makes(package)
    layout = importlib.import_module(f"{package}.train.parallel").Parallel(
        torch.device("cpu"), torch.float64, 0, BATCH, LENGTH
    )
    layout.step(*(tensor[layout.rows] for tensor in batch(0, apart=False)))
    schedule = layout.schedule
    plain = ScheduleDualPipeV(schedule._stages, schedule._n_microbatches, loss_fn=layout.keep_losses)
    orders = [order.pipeline_order_with_comms[layout.mesh.pp.rank()] for order in (schedule, plain)]
    actions = [[str(action) for action in order] for order in orders]
    assert sum(action.computation_type == OVERLAP_F_B for action in orders[0]) == len(found)
    results = {"pairs": found, "order": actions[0], "torch": actions[1], "waited": waited, "times": times}
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str, package: str) -> None:
    sys.path.insert(0, folder)
    world = importlib.import_module(f"{package}.train.plan").WORLD
    with tempfile.TemporaryDirectory() as results:
        mp.start_processes(rank_main, (world, results, package), nprocs=world, start_method="fork")
        print(json.dumps([json.loads(Path(results, f"{rank}.json").read_text()) for rank in range(world)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
