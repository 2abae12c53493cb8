"""What says which keys a token sees, the same for all heads: masks, and where documents begin."""

from __future__ import annotations

from collections.abc import Iterator

from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.ops.attention import WindowedAttention
from dsc.compiler.ops.packed import DocumentAttention, VisibleInDocument


def masks(steps: tuple[Step, ...]) -> Iterator[Storage]:
    """Of bits, and of the numbers that PyTorch's operator adds to the logits in their place."""
    for step in steps:
        if isinstance(step.node.op, VisibleInDocument):
            yield from (one for one in step.outputs if one is not None)
        elif isinstance(step.node.op, DocumentAttention | WindowedAttention):
            yield from (one for one in step.saved if one.place.endswith("saved[3]"))


def starts(steps: tuple[Step, ...]) -> Iterator[Storage]:
    """Where documents begin."""
    for step in steps:
        given = zip(step.node.op.operands, step.inputs, strict=True)
        yield from (one for name, one in given if name == "starts" and one is not None)


def in_halves(numbers: int, context: int) -> int:
    """Of the square masks of all ranks what these make: each two, of a chunk's rows and of the keys up to its end."""
    return numbers * (2 * context + 1) // (4 * context)
