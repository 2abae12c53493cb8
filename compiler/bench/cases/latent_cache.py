"""The write into the paged latent cache: a decode step of 128 sequences, and `tokens` tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case, normal, turns

STEP = 128  # tokens of a decode step
MAX_POSITIONS = 4096


def cases(kernel: ModuleType, sizes: tuple[Any, ...], tokens: int, device: str) -> Iterator[Case]:
    latent, rotary, queries = sizes
    widths = (latent + rotary, *([queries] if queries else []))
    for count in (STEP, tokens):
        kv, *q_latent = (normal(count, width, device=device) for width in widths)
        kv_weight, *q_weight = (normal(width, device=device) for width in (latent, *widths[1:]))
        rope = turns(MAX_POSITIONS, rotary, device)
        positions = torch.arange(count, device=device) % MAX_POSITIONS
        slots = torch.randperm(count, device=device)
        pages = -(-count // kernel.PAGE_SIZE)
        cache = kernel.empty_cache(pages, kv)
        cache.zero_()
        arguments = (kv, kv_weight, *q_latent, *q_weight, rope, positions, slots)
        written = count * cache.shape[-1] * cache.itemsize
        yield Case(
            f"write_latent_cache {count}",
            partial(_written, kernel._write, cache, *arguments),
            partial(_written, kernel.reference, cache.clone(), *arguments),
            bytes=written + kv.nbytes + sum(2 * q.nbytes for q in q_latent),
        )


def _written(write: Callable[..., Tensor | None], cache: Tensor, *arguments: Tensor) -> tuple[Tensor | None, Tensor]:
    """What a call returns, and the cache after it."""
    return write(*arguments, cache), cache
