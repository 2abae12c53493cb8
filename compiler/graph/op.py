"""The contract of an op kind: everything that the rest of the compiler may ask of one line of the model.

An op kind is a dataclass derived from `Op`, registered with `@register`, and one template `ops/<kind>.py.jinja` that
prints it. Nothing else in the compiler names op kinds, except passes that rewrite them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, Literal, TypeVar, dataclass_transform

from dsc.compiler.graph.dim import Dim, Int, total
from dsc.compiler.graph.types import DType, TensorType, ValueType

Types = tuple[ValueType, ...]
Pass = Literal["forward", "input_gradient", "weight_gradient"]
"""A product with a weight, forward, and the two of backward."""


class OpClass(Enum):
    """What bounds an op's time, and so how it is estimated."""

    PRODUCT = "a product with a weight"
    GROUPED_PRODUCT = "products of routed experts, each of its rows with its weight"
    ATTENTION = "products of activations with each other, and a softmax between them"
    LOOKUP = "rows of a table: as many bytes as come out"
    EXCHANGE = "rows to other ranks and from them: the links' time, not the memory's"
    MEMORY = "everything else: each operand read once, each result written once"


@dataclass(frozen=True)
class Parameter:
    """A trained tensor, named relative to the class that holds it."""

    name: str
    type: TensorType
    init: Literal["normal", "ones", "zeros"] = "normal"
    # Share of the elements that one token touches, as (chosen, all): routed experts use k of E.
    active: tuple[Dim, Dim] = (Int(1), Int(1))

    def substitute(self, sizes: Mapping[str, Dim]) -> Parameter:
        """The same tensor with symbols of its shape replaced; itself where it has none of them."""
        shape = tuple(dim.substitute(sizes) for dim in self.type.shape)
        return self if shape == self.type.shape else replace(self, type=replace(self.type, shape=shape))

    @property
    def is_routed(self) -> bool:
        """Whether a token touches only some of it, as of routed experts."""
        return self.active[1].value() > 1


@dataclass(frozen=True)
class Saved:
    """A tensor kept from forward to backward: an input or output of the op by position, or one of its own."""

    source: Literal["input", "output", "own"]
    index: int = 0
    type: TensorType | None = None


R = TypeVar("R")


@dataclass_transform(frozen_default=True)
def record(cls: type[R]) -> type[R]:
    """A class of ops as a dataclass. For mypy it is frozen.

    A frozen dataclass generates six methods where this one generates `__init__`; `Op` has the others for all. Each
    start of dsc makes 160 such classes.
    """
    return dataclass(repr=False, eq=False)(cls)


@record
class Op:
    """One operation. Fields are its attributes; sizes among them are `Dim`s. Never changed, equal by value."""

    kind: ClassVar[str]
    op_class: ClassVar[OpClass] = OpClass.MEMORY
    is_view: ClassVar[bool] = False
    """The outputs share the storage of the first input."""
    like: ClassVar[tuple[str, ...]] = ()
    """Operands of which only shape, element type and device are read."""
    in_cache: ClassVar[bool] = False
    """The outputs lie in the layer's cache, memory that outlives the step."""
    waits: ClassVar[bool] = False
    """The host waits for the device to read what it makes."""
    saves_codes: ClassVar[bool] = False
    """Its own saved tensors are its input quantized to FP8, which is recomputed wherever the input is."""
    includes_swiglu: ClassVar[bool] = False
    """What it saves are gate and up, which its own SwiGLU reads."""
    prefix = ""
    """Before the names of the helpers that the line calls and, in capitals, of their constants: window_ where other ops
    of the model call the same helpers with other constants."""
    in_fp8: ClassVar[frozenset[Pass]] = frozenset()
    """The passes whose products read FP8. They quantize what they read themselves."""
    recompute: ClassVar[Literal["norms", "swiglu"] | None] = None
    """The recompute choice under which backward computes the outputs again from what the op saves. Only element-wise
    ops have one, because they are cheap. Choices that span products follow from the graph (parts/recompute.py of
    the planner)."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the inputs, as the template writes them."""
        return ("x",)

    @property
    def requires(self) -> tuple[str, ...]:
        """Helper functions (templates/helpers) that the printed line calls."""
        return ()

    def infer(self, inputs: Types) -> Types:
        """Output types. Asserts what the builder must have got right."""
        raise TypeError(type(self))

    def parameters(self) -> tuple[Parameter, ...]:
        return ()

    def borrowed(self) -> tuple[str, ...]:
        """Full names of the parameters that it reads and an op of another module declares, such as a tied head's."""
        return ()

    @property
    def product(self) -> str | None:
        """What precision.linear.products calls its product; None for what stays in the type of parameters."""
        return None

    def attribute(self) -> str | None:
        """The attribute of the class that the template's `declare` block makes, if any."""
        return None

    def holders(self) -> tuple[Op, ...]:
        """The ops whose templates declare attributes for this one: itself, or those that it was made of."""
        return (self,)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Forward FLOPs by the field's convention: two for each use of a weight, attention's products, nothing else."""
        return Int(0)

    def backward_flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products for each one of forward: by the other operand, once for each gradient."""
        return self.flops(inputs, outputs) * 2

    def bytes_moved(self, inputs: Types, outputs: Types) -> Dim:
        """Least forward traffic: every operand and parameter read once, every result written once."""
        if self.is_view:
            return Int(0)
        tensors = [t.bytes for t in (*inputs, *outputs) if isinstance(t, TensorType)]
        return total(tensors) + total([p.type.bytes for p in self.parameters()])

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        """Read and written to quantize activations for products in FP8: by forward, and gradients by backward."""
        return Int(0), Int(0)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """What backward needs of forward, parameters left out."""
        return ()

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        """What its backward writes for a moment beside the gradients of its operands."""
        return ()

    def memory(self, inputs: Types, outputs: Types) -> tuple[int | ValueType | None, ...]:
        """The memory of each output: an input by position whose memory it shares, a parameter (None), or its own."""
        return tuple(0 if self.is_view else output for output in outputs)


OPS: dict[str, type[Op]] = {}


@dataclass_transform(frozen_default=True)
def register(cls: type[R]) -> type[R]:
    """Make a record that is an op kind known; its template is looked up by its kind."""
    assert issubclass(cls, Op), cls
    assert cls.kind not in OPS or OPS[cls.kind].__qualname__ == cls.__qualname__, f"two op kinds named {cls.kind}"
    OPS[cls.kind] = record(cls)
    return cls


def tensor(value: ValueType) -> TensorType:
    assert isinstance(value, TensorType), value
    return value


def retyped(value: ValueType, *shape: Dim, dtype: DType | None = None) -> TensorType:
    """A tensor of another shape, of the same element type unless said otherwise."""
    return TensorType(tuple(shape), dtype or tensor(value).dtype)
