"""CUDA graphs without a GPU: a capture writes down every operator with the tensors that it was given, a replay runs the
same operators on the same tensors, whatever the Python around them has become.

As on a GPU, what the host would have to wait for cannot be captured, and graphs of one pool share memory: when one is
replayed, nothing is left of what others made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COUNTED = ("nonzero", "masked_select", "bincount", "unique", "_unique2", "_local_scalar_dense", "equal", "is_nonzero")


def refuse_waiting(function: Any, arguments: Any) -> None:
    """Raises for an operator whose result the host reads, or whose result has a size that only the device knows."""
    name = function.__name__.partition(".")[0]
    indexes = tree_leaves(arguments[1:]) if name in ("index", "index_put", "index_put_") else ()
    masks = any(isinstance(index, Tensor) and index.dtype is torch.bool for index in indexes)
    if name in COUNTED or masks or function is torch.ops.aten.repeat_interleave.Tensor:
        raise RuntimeError(f"the host waits for {function}")


class Tape(TorchDispatchMode):
    """Operators as they were called, and what they made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: dict[int, Tensor] = {}
        self.given: dict[int, Tensor] = {}
        """What was read and made elsewhere, by address."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_waiting(func, args)
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        for tensor in tensors((args, kwargs)):
            if address(tensor) not in self.made:
                self.given[address(tensor)] = tensor
        for tensor in tensors(result):
            if address(tensor) not in self.given:
                self.made[address(tensor)] = tensor
        return result

    def forget(self) -> None:
        for tensor in self.made.values():
            tensor.untyped_storage().fill_(255)  # no number in any type of float

    def replay(self) -> None:
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            for before, now in zip(tensors(result), tensors(again), strict=True):
                if address(before) != address(now):
                    before.copy_(now)


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    every: ClassVar[list["Graph"]] = []

    def __init__(self) -> None:
        self.tape = Tape()
        self.replays = 0
        self.every.append(self)

    def replay(self) -> None:
        for graph in self.every:
            graph.tape.forget()
        self.tape.replay()
        self.replays += 1


@contextmanager
def capturing(graph: Graph, pool: object) -> Iterator[None]:
    """In place of torch.cuda.graph."""
    with graph.tape:
        yield


@contextmanager
def faked() -> Iterator[list[Graph]]:
    """Yields the graphs that are made."""
    Graph.every = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capturing)
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        yield Graph.every
