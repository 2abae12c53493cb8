"""What one part needs for a moment beside what it keeps: results on their way to their readers, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.planner.parts.parts import FLOATS
from dsc.compiler.planner.parts.recompute import Kept


class Moments(NamedTuple):
    """What comes to live and what goes, op by op: the same whatever the sizes are."""

    tensors: list[Storage]
    ops: list[tuple[range, list[int]]]
    """Positions among the tensors: of those that come with an op, and of those that go with it."""

    def most(self, size: Callable[[Storage], int]) -> int:
        """Bytes that live at once."""
        sizes = [size(one) for one in self.tensors]
        live = most = 0
        for come, go in self.ops:
            live += sum(sizes[position] for position in come)
            most = max(most, live)
            live -= sum(sizes[position] for position in go)
        return most

    def come(self, some: Iterable[Storage], live: dict[Storage, int]) -> None:
        """Those that do not live yet."""
        for one in some:
            if one not in live:
                live[one] = len(self.tensors)
                self.tensors.append(one)


def forward_moments(steps: Sequence[Step], kept: Kept) -> Moments:
    """While a part runs forward; what is kept stays."""
    stays = set(kept.storages)
    readers = {one: index for index, step in enumerate(steps) for one in step.inputs if one is not None}
    found, live = Moments([], []), dict[Storage, int]()
    for index, step in enumerate(steps):
        start = len(found.tensors)
        found.come(_made(step), live)
        ends = [one for one in live if one not in stays and readers.get(one, -1) <= index]
        found.ops.append((range(start, len(found.tensors)), [live.pop(one) for one in ends]))
    return found


def backward_moments(steps: Sequence[Step], kept: Kept) -> Moments:
    """While it runs backward.

    A gradient is as large as its tensor and lives from the first reader that makes it to the op whose result it is of.
    What is made again lives from the start; that and what was kept go after their last use, or with their method.
    """
    backwards = list(reversed(list(enumerate(steps))))
    stays = {*kept.storages, *kept.remade}
    last_use: dict[Storage, int] = {}
    for index, step in backwards:
        last_use.update((one, index) for one in (*step.saved, *step.inputs, *step.outputs) if one in stays)
    last_use.update(kept.until)
    makers = {one: index for index, step in backwards for one in _made(step)}
    found, held, gradients = Moments([], []), dict[Storage, int](), dict[Storage, int]()
    found.come((*kept.storages, *kept.remade), held)
    found.come(_with_gradients(steps[-1].outputs), gradients)
    start = 0
    for index, step in backwards:
        found.come(_with_gradients(step.inputs), gradients)
        passing = {one: len(found.tensors) + place for place, one in enumerate(step.passing)}
        found.tensors.extend(passing)
        done = [gradients.pop(one) for one in [one for one in gradients if makers.get(one) == index]]
        done += [held.pop(one) for one in [one for one in held if last_use.get(one) == index]]
        found.ops.append((range(start, len(found.tensors)), [*done, *passing.values()]))
        start = len(found.tensors)
    return found


def _with_gradients(tensors: Iterable[Storage | None]) -> list[Storage]:
    return [one for one in tensors if one is not None and one.type.dtype in FLOATS]


def _made(step: Step) -> tuple[Storage, ...]:
    given = set(step.inputs)
    return tuple(one for one in dict.fromkeys((*step.outputs, *step.saved)) if one is not None and one not in given)
