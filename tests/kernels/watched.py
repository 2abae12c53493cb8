"""A watch over launches in Triton's interpreter: which bytes programs touch, and in which order the programs run.

Within `guarded`, a load or store outside the tensors of its launch raises OutOfRange before memory is touched, though
the memory there may exist: what a fault would corrupt stays whole, and the process lives to say so. Every test of the
interpreter's lane runs within it.

Within `watched`, also two programs of a launch that touch the same element, one of them writing it, raise Race: on a
GPU, which of them comes first is chance. Programs run in a shuffled order, so a result that depends on it differs as
well.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

NOBODY, SEVERAL = -1, -2  # in place of a program
NOWHERE = (-(1 << 63), -(1 << 63))
"""A span before all others, for what lies before the first tensor."""


class OutOfRange(AssertionError):
    """A program touched what is in none of the tensors of its launch."""


class Race(AssertionError):
    """Two programs touched one element, and one of them wrote it."""


class Memory:
    """The memory of one launch. Elements are known by the address of their first byte."""

    def __init__(self, function: str, tensors: list[Tensor]) -> None:
        self.function, self.program = function, NOBODY
        spans = [NOWHERE, *_merged(_span(tensor) for tensor in tensors if tensor.numel())]
        self.begins, self.ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))

    def begin(self, *grid: int) -> None:
        self.program = NOBODY

    def place(self, *at: int) -> tuple[int, ...]:
        """Where in the grid the next program is, that would be at `at`."""
        self.program += 1
        return at

    def read(self, addresses: np.ndarray, width: int) -> None:
        self.spans(addresses, width, "reads")

    def write(self, addresses: np.ndarray, width: int) -> None:
        self.spans(addresses, width, "writes")

    def spans(self, addresses: np.ndarray, width: int, verb: str) -> np.ndarray:
        """The tensors that addresses lie in, by number."""
        span = np.searchsorted(self.begins, addresses, "right") - 1
        outside = addresses + width > self.ends[span]
        if outside.any():
            raise OutOfRange(f"{self.function}, program {self.program} {verb} {outside.sum()} elements of no tensor")
        return span


class Launch(Memory):
    """The same, and who touched what of it. Programs come in a shuffled order."""

    def __init__(self, function: str, tensors: list[Tensor], seed: int) -> None:
        super().__init__(function, tensors)
        self.starts = np.cumsum([0, *(self.ends - self.begins)])[:-1]
        self.readers, self.writers = (np.full(sum(self.ends - self.begins), NOBODY, np.int64) for _ in range(2))
        self.seed, self.order = seed, torch.empty(0, 3)

    def begin(self, *grid: int) -> None:
        super().begin(*grid)
        coordinates = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(-1, 3)
        self.order = coordinates[torch.randperm(len(coordinates), generator=torch.Generator().manual_seed(self.seed))]

    def place(self, *at: int) -> tuple[int, ...]:
        super().place(*at)
        return tuple(self.order[self.program].tolist())

    def read(self, addresses: np.ndarray, width: int) -> None:
        at = self._places(addresses, width, "reads")
        self._refuse(self.writers[at], "reads what program {} writes")
        others = (self.readers[at] != NOBODY) & (self.readers[at] != self.program)
        self.readers[at] = np.where(others, SEVERAL, self.program)

    def write(self, addresses: np.ndarray, width: int) -> None:
        at = self._places(addresses, width, "writes")
        self._refuse(self.writers[at], "writes what program {} writes")
        self._refuse(self.readers[at], "writes what program {} reads")
        self.writers[at] = self.program

    def _places(self, addresses: np.ndarray, width: int, verb: str) -> np.ndarray:
        span = self.spans(addresses, width, verb)
        return addresses - self.begins[span] + self.starts[span]

    def _refuse(self, owners: np.ndarray, what: str) -> None:
        others = owners[(owners != NOBODY) & (owners != self.program)]
        if others.size:
            raise Race(f"{self.function}, program {self.program} {what.format(others[0])}")


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


def _merged(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping spans, of views, as one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _unmasked(ptrs: TensorHandle, mask: Any) -> np.ndarray:
    """The addresses that are touched. Masks of tensor descriptors come as plain arrays."""
    flags = mask.data if isinstance(mask, TensorHandle) else mask
    return ptrs.data[np.asarray(flags, bool)].astype(np.int64)


def _root(error: BaseException) -> BaseException:
    """The interpreter wraps what a kernel raises, once for each function that it was called through."""
    return error if error.__cause__ is None else _root(error.__cause__)


@contextmanager
def _noted(memory_of: Callable[[str, list[Tensor]], Memory]) -> Iterator[set[str]]:
    """Launches tell a Memory of their own what they read and write. Yields the names of the functions launched."""
    launched: set[str] = set()
    launch: Memory
    call, builder = GridExecutor.__call__, InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def noted_call(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        nonlocal launch
        given = [getattr(value, "base", value) for value in (*args, *kwargs.values())]  # of tensor descriptors
        launch = memory_of(self.fn.__name__, [value for value in given if isinstance(value, Tensor)])
        launched.add(self.fn.__name__)
        try:
            call(self, *args, **kwargs)
        except InterpreterError as error:
            raise _root(error) from None

    def noted_dim(self: InterpreterBuilder, *grid: int) -> None:
        set_dim(self, *grid)
        launch.begin(*grid)

    def noted_idx(self: InterpreterBuilder, *at: int) -> None:
        set_idx(self, *launch.place(*at))

    def noted_load(self: InterpreterBuilder, ptrs: TensorHandle, mask: Any, *rest: Any, **options: Any) -> Any:
        launch.read(_unmasked(ptrs, mask), ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest, **options)

    def noted_store(self: InterpreterBuilder, ptrs: TensorHandle, value: TensorHandle, mask: Any, *rest: Any) -> Any:
        launch.write(_unmasked(ptrs, mask), ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    GridExecutor.__call__ = noted_call
    builder.set_grid_dim, builder.set_grid_idx = noted_dim, noted_idx
    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    try:
        yield launched
    finally:
        GridExecutor.__call__ = call
        builder.set_grid_dim, builder.set_grid_idx = set_dim, set_idx
        builder.create_masked_load, builder.create_masked_store = load, store


def guarded() -> AbstractContextManager[set[str]]:
    """Yields the names of the functions that were launched."""
    return _noted(Memory)


def watched(seed: int = 0) -> AbstractContextManager[set[str]]:
    """The same."""
    return _noted(partial(Launch, seed=seed))
