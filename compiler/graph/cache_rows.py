"""The rows of each layer's cache at inference and their bytes, from which all other figures about caches follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsc.compiler.graph.block import CachedValue
from dsc.compiler.graph.dim import Axis, Dim, product
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import DType
from dsc.spec.precision import CACHE_GROUP


@dataclass(frozen=True)
class CacheRow:
    """One tensor of a layer's cache, such as the keys, the values or the latents: a row for every token."""

    name: str
    shape: tuple[Dim, ...]
    """Of one row: [J, N] of keys, [L] of latents."""
    dtype: DType
    has_fp8_form: bool
    """Whether an FP8 cache holds it in FP8; otherwise it is in bfloat16 there."""
    tokens: int = 1
    """Tokens that share one row."""
    window: int | None = None
    """How many of the last tokens are kept; None: all."""

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset[Axis]().union(*(dim.axes() for dim in self.shape))

    @property
    def bytes(self) -> int:
        """Of one row; FP8 has a float32 scale for every CACHE_GROUP numbers."""
        numbers = product(self.shape).value()
        scales = numbers // CACHE_GROUP * DType.FP32.bytes if self.dtype is DType.FP8 else 0
        return numbers * self.dtype.bytes + scales

    def kept(self, tokens: int) -> int:
        """Rows kept after `tokens` tokens of a sequence."""
        last = tokens if self.window is None else min(tokens, self.window)
        return -(-last // self.tokens)

    def bytes_of(self, tokens: int) -> int:
        """Bytes kept after `tokens` tokens of a sequence."""
        return self.kept(tokens) * self.bytes

    def in_fp8_cache(self) -> CacheRow:
        return replace(self, dtype=DType.FP8 if self.has_fp8_form else DType.BF16)


def cache_rows(graph: Graph, key: str) -> dict[str, tuple[CacheRow, ...]]:
    """The rows of every layer that a method runs, by the path of its module; empty without such a method."""
    if key not in graph.blocks:
        return {}
    modules = graph.executions(key)
    return {path: tuple(map(_row, block.cached)) for path, block in modules if block.cached}


def _row(kept: CachedValue) -> CacheRow:
    """Of a value [B, S, ...]."""
    window = None if kept.window is None else kept.window.value()
    shape = tensor(kept.value.type).shape[2:]
    return CacheRow(kept.value.name, shape, kept.dtype, kept.has_fp8_form, window=window)
