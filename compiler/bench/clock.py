"""How long something takes on a device, with its caches cold and the host out of the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

COLD_BYTES = 256 << 20  # more than any GPU's L2: read between runs, so that inputs come from memory
AHEAD_CYCLES = 2_000_000  # about a millisecond of a GPU asleep, in which the host launches all of a run
WARM_UP, RUNS = 3, 20
BUDGET = 0.5  # seconds of runs after the warm-up; slow things run fewer times


def seconds(run: Callable[[], object], device: str) -> float:
    """The median of one run."""
    return _on_gpu(run, device) if device.startswith("cuda") else _on_cpu(run)


def _on_gpu(run: Callable[[], object], device: str) -> float:
    flush = torch.zeros(COLD_BYTES // 4, dtype=torch.int32, device=device)
    for _ in range(WARM_UP):
        run()
    once = _timed_on_gpu(run, flush)
    count = max(3, min(RUNS, int(BUDGET / once)))
    return statistics.median(_timed_on_gpu(run, flush) for _ in range(count))


def _timed_on_gpu(run: Callable[[], object], flush: torch.Tensor) -> float:
    """Reads leave nothing in L2 to be written back while the run is timed, as writes would."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    flush.sum()
    torch.cuda._sleep(AHEAD_CYCLES)  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _on_cpu(run: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    first = once()
    return statistics.median(once() for _ in range(max(1, min(RUNS, int(BUDGET / max(first, 1e-6))))))
