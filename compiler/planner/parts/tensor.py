"""What ranks that share heads, widths and the vocabulary send each other in a part, and what each then has whole."""

from __future__ import annotations

from collections.abc import Iterator

from dsc.compiler.graph.dim import Axis, Dim
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.ops.tensor import CrossEntropyOfShards, GatherSequence, SumOwnPart
from dsc.compiler.planner.parts.masks import masks, starts


def sent(steps: tuple[Step, ...]) -> Iterator[Dim]:
    """Bytes of each collective of forward, of all ranks together; backward has one as large for each."""
    for step in steps:
        if isinstance(step.node.op, GatherSequence | SumOwnPart | CrossEntropyOfShards):
            yield step.node.op.received(step.node.input_types).substitute(step.sizes)


def whole_on_each(steps: tuple[Step, ...]) -> frozenset[Storage]:
    """Of whole sequences: what was gathered, its FP8 codes, parts of sums not yet added up, and who sees which keys."""
    gathered = {one for step in steps if isinstance(step.node.op, GatherSequence) for one in step.outputs}
    reading = [step for step in steps if step.node.op.saves_codes and gathered & set(step.inputs)]
    codes = [one for step in reading for one in step.saved if one not in step.inputs]
    parts = [one for step in steps if isinstance(step.node.op, SumOwnPart) for one in step.inputs]
    seen = [one for one in (*masks(steps), *starts(steps)) if Axis.BATCH in one.type.axes]
    return frozenset(one for one in (*gathered, *codes, *parts, *seen) if one is not None)
