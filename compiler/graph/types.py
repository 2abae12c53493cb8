"""What flows along the edges of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from dsc.compiler.graph.dim import Axis, Dim, product


class DType(Enum):
    """Element types, with their size in bytes."""

    BF16 = ("bf16", 2)
    FP32 = ("fp32", 4)
    FP8 = ("fp8_e4m3", 1)
    BOOL = ("bool", 1)
    INT32 = ("int32", 4)
    INT64 = ("int64", 8)

    @property
    def bytes(self) -> int:
        return self.value[1]

    def __str__(self) -> str:
        return self.value[0]


@dataclass(frozen=True)
class TensorType:
    shape: tuple[Dim, ...]
    dtype: DType

    annotation = "Tensor"

    @cached_property
    def numel(self) -> Dim:
        return product(self.shape)

    @cached_property
    def bytes(self) -> Dim:
        return self.numel * self.dtype.bytes

    @cached_property
    def axes(self) -> frozenset[Axis]:
        """Of all its dims."""
        return frozenset[Axis]().union(*(dim.axes() for dim in self.shape))

    def shape_text(self) -> str:
        return f"[{', '.join(dim.shape_text() for dim in self.shape)}]"

    def same(self, other: ValueType) -> bool:
        """Equal element type and equal sizes, however the sizes are written."""
        return (
            isinstance(other, TensorType)
            and self.dtype is other.dtype
            and len(self.shape) == len(other.shape)
            and all(a.same(b) for a, b in zip(self.shape, other.shape, strict=True))
        )


@dataclass(frozen=True)
class PartsType:
    """Named scalars: what a loss is made of."""

    annotation = "dict[str, Tensor]"

    def shape_text(self) -> str:
        return ""

    def same(self, other: ValueType) -> bool:
        return isinstance(other, PartsType)


@dataclass(frozen=True)
class CacheType:
    """A layer's cache of the tokens before: made by the engine, extended by `cache_append`."""

    annotation = "LayerCache"

    def shape_text(self) -> str:
        return ""

    def same(self, other: ValueType) -> bool:
        return isinstance(other, CacheType)


@dataclass(frozen=True)
class CachesType:
    """One cache for each layer."""

    annotation = "list[LayerCache]"

    def shape_text(self) -> str:
        return ""

    def same(self, other: ValueType) -> bool:
        return isinstance(other, CachesType)


@dataclass(frozen=True)
class SplitsType:
    """Rows for each rank of a group, on the host."""

    annotation = "list[int]"

    def shape_text(self) -> str:
        return ""

    def same(self, other: ValueType) -> bool:
        return isinstance(other, SplitsType)


@dataclass(frozen=True)
class ObjectType:
    """What the engine hands down to the lines that read it: no tensor, and nothing is computed of it."""

    annotation: str

    def shape_text(self) -> str:
        return ""

    def same(self, other: ValueType) -> bool:
        return self == other


ValueType = TensorType | PartsType | CacheType | CachesType | SplitsType | ObjectType
