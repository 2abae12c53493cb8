"""What one part needs for a moment beside what it keeps: results on their way to their readers, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.graph.types import DType
from dsc.compiler.planner.parts.recompute import Kept

Size = Callable[[Storage], int]
FLOATS = (DType.BF16, DType.FP32, DType.FP8)


def forward_peak(steps: Sequence[Step], kept: Kept, size: Size) -> int:
    """The most that lives at once while a part runs forward, less all that it has kept when it is done."""
    stays = set(kept.storages)
    readers = {one: index for index, step in enumerate(steps) for one in step.inputs if one is not None}
    live: dict[Storage, int] = {}
    peak = 0
    for index, step in enumerate(steps):
        for one in _made(step):
            live.setdefault(one, size(one))
        peak = max(peak, sum(live.values()))
        for one in list(live):
            if one not in stays and readers.get(one, -1) <= index:
                del live[one]
    return peak - sum(size(one) for one in stays)


def backward_peak(steps: Sequence[Step], kept: Kept, size: Size) -> int:
    """The most that lives at once while a part runs backward, less all that it had kept before.

    A gradient is as large as its tensor and lives from the first reader that makes it to the op whose result it is of.
    What is made again lives from the start, what was kept until its last use.
    """
    held = {one: size(one) for one in (*kept.storages, *kept.remade)}
    start = sum(size(one) for one in kept.storages)
    last_use: dict[Storage, int] = {}
    for index, step in reversed(list(enumerate(steps))):
        for one in (*step.saved, *step.inputs, *step.outputs):
            if one in held:
                last_use[one] = index
    makers = {one: index for index, step in reversed(list(enumerate(steps))) for one in _made(step)}
    results = steps[-1].outputs if steps else ()
    gradients = {one: size(one) for one in results if one is not None and _has_gradient(one)}
    peak = 0
    for index, step in reversed(list(enumerate(steps))):
        for one in step.inputs:
            if one is not None and _has_gradient(one):
                gradients.setdefault(one, size(one))
        peak = max(peak, sum(held.values()) + sum(gradients.values()))
        for one in [one for one in gradients if makers.get(one) == index]:
            del gradients[one]
        for one in [one for one in held if last_use.get(one) == index]:
            del held[one]
    return peak - start


def _made(step: Step) -> tuple[Storage, ...]:
    given = set(step.inputs)
    return tuple(one for one in dict.fromkeys((*step.outputs, *step.saved)) if one is not None and one not in given)


def _has_gradient(storage: Storage) -> bool:
    return storage.type.dtype in FLOATS
