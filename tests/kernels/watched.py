"""A watch over launches in Triton's interpreter: which bytes programs touch, and in which order the programs run.

Within `watched`, a load or store outside the tensors of its launch raises OutOfRange, though the memory there may
exist; and two programs of a launch that touch the same element, one of them writing it, raise Race: on a GPU, which of
them comes first is chance. Programs run in a shuffled order, so a result that depends on it differs as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

NOBODY, SEVERAL = -1, -2  # in place of a program


class OutOfRange(Exception):
    """A program touched what is in none of the tensors of its launch."""


class Race(Exception):
    """Two programs touched one element, and one of them wrote it."""


class Launch:
    """The memory of one launch, and who touched what of it. Elements are known by the address of their first byte."""

    def __init__(self, function: str, tensors: list[Tensor]) -> None:
        self.function, self.program = function, NOBODY
        spans = _merged(_span(tensor) for tensor in tensors if tensor.numel())
        self.begins, self.ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
        self.starts = np.cumsum([0, *(self.ends - self.begins)])[:-1]
        self.readers, self.writers = (np.full(sum(self.ends - self.begins), NOBODY, np.int64) for _ in range(2))

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
        addresses = addresses.astype(np.int64)
        span = np.searchsorted(self.begins, addresses, "right") - 1
        outside = (span < 0) | (addresses + width > self.ends[span])
        if outside.any():
            raise OutOfRange(f"{self.function}, program {self.program} {verb} {outside.sum()} elements of no tensor")
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
    return ptrs.data[np.asarray(flags, bool)]


def _root(error: BaseException) -> BaseException:
    """The interpreter wraps what a kernel raises, once for each function that it was called through."""
    return error if error.__cause__ is None else _root(error.__cause__)


@contextmanager
def watched(seed: int = 0) -> Iterator[set[str]]:
    """Yields the names of the functions that were launched."""
    launched: set[str] = set()
    launch: Launch | None = None
    order: list[tuple[int, int, int]] = []
    call, load, store = (
        GridExecutor.__call__,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )
    set_dim, set_idx = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def watched_call(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        nonlocal launch
        given = [getattr(value, "base", value) for value in (*args, *kwargs.values())]  # of tensor descriptors
        tensors = [value for value in given if isinstance(value, Tensor)]
        launch = Launch(self.fn.__name__, tensors)
        launched.add(self.fn.__name__)
        call(self, *args, **kwargs)

    def watched_dim(self: InterpreterBuilder, *grid: int) -> None:
        set_dim(self, *grid)
        coordinates = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(-1, 3)
        shuffled = torch.randperm(len(coordinates), generator=torch.Generator().manual_seed(seed))
        order[:] = [(x, y, z) for x, y, z in coordinates[shuffled].tolist()]
        assert launch is not None
        launch.program = NOBODY

    def watched_idx(self: InterpreterBuilder, *_: int) -> None:
        assert launch is not None
        launch.program += 1
        set_idx(self, *order[launch.program])

    def watched_load(
        self: InterpreterBuilder, ptrs: TensorHandle, mask: TensorHandle, *rest: Any, **options: Any
    ) -> Any:
        assert launch is not None
        launch.read(_unmasked(ptrs, mask), ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest, **options)

    def watched_store(
        self: InterpreterBuilder, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> Any:
        assert launch is not None
        launch.write(_unmasked(ptrs, mask), ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    GridExecutor.__call__ = watched_call
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = watched_load, watched_store
    InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx = watched_dim, watched_idx
    try:
        yield launched
    except InterpreterError as error:
        raise _root(error) from None
    finally:
        GridExecutor.__call__ = call
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
        InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx = set_dim, set_idx
