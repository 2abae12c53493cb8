"""One launch of a kernel at real sizes, with what it is compared against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_read = ContextVar("read", default=True)


@contextmanager
def never_read() -> Iterator[None]:
    """Within, inputs are uninitialized memory: kernels are only compiled for them, and a 671B model's are large."""
    token = _read.set(False)
    try:
        yield
    finally:
        _read.reset(token)


def filled() -> bool:
    """Whether the inputs of cases need values."""
    return _read.get()


def normal(*shape: int, device: str, std: float = 1.0) -> Tensor:
    """Normally distributed bfloat16."""
    x = torch.empty(shape, device=device, dtype=torch.bfloat16)
    return x.normal_(std=std) if filled() else x


def turns(tokens: int, width: int, device: str) -> Tensor:
    """cos and signed sin of one angle for each token: float32 [2, tokens, width], of pairs of neighbours and of pairs
    half the width apart alike, if that is even."""
    angle, place = 7 * torch.randn(tokens, 1, device=device), torch.arange(width, device=device)
    sign = 1 - 2 * ((place + (place >= width // 2)) % 2)
    return torch.stack((angle.cos().expand(-1, width), angle.sin() * sign))


DOCUMENTS = 4


def documents(tokens: int, device: str) -> tuple[Tensor, int]:
    """Of a row of documents, as equally long as they come: where that of each token begins, int32 [1, tokens], and how
    many pairs of a query and a key there are, half a square of each document."""
    bounds = [tokens * index // DOCUMENTS for index in range(DOCUMENTS + 1)]
    lengths = [end - begin for begin, end in pairwise(bounds)]
    starts = torch.tensor(bounds[:-1], dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    return starts.unsqueeze(0).to(device), sum(length**2 for length in lengths) // 2


@dataclass(frozen=True)
class Case:
    name: str
    """What runs, at which sizes: "add_rms_norm 4096 x 7168"."""
    run: Callable[[], object]
    """The kernel, its inputs bound."""
    reference: Callable[[], object]
    """The plain PyTorch of the same file on the same inputs; torch.compile of it is measured too."""
    bytes: int
    """Least traffic with memory: every input read once, every output written once."""
    flops: int = 0
    """Products and sums of the matrix units; 0 where memory is the floor."""
    library: Callable[[], object] | None = None
    """PyTorch's own operator for the same, where there is one."""
    bound: float = 1e-5
    """Largest calc_diff from the reference that counts as correct."""
