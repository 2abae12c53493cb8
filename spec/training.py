"""What the trainer reads in a row, and does where a step is not like the others.

What is left out leaves no line in it.
"""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, Section


class Spike(Section):
    """A step whose loss or gradient norm is far above those before it (OLMo-core's SkipStepOptimizer)."""

    deviations: Annotated[float, Field(gt=0.0, le=1e6)] = 6.0
    """How many standard deviations above the mean of the window make a spike."""
    window: Annotated[int, Field(ge=4, le=100_000)] = 128
    """Steps that are compared with; nothing is a spike until half of them are there."""
    action: Literal["skip", "count", "stop"]
    """Leave the update out, only count the step, or end the run."""


class BatchRamp(Section):
    """Steps of fewer sequences first (DeepSeek-V3, section 4.2: from 3,072 to 15,360 over 469B tokens)."""

    start: Count
    """Sequences of the first steps."""
    increment: Count
    """Sequences that a step has more each time, up to workload.global_batch."""
    tokens: Annotated[int, Field(ge=1, le=10**18)]
    """Tokens in which it grows; each size has an equal part of them, to the end of the step that completes it."""


class Training(Section):
    documents: Literal["joined", "apart"] = "joined"
    """What a token sees of a row: all that precedes it, whichever document that is of (DeepSeek-V3, section 4.1), or of
    its own document alone, in attention and in labels (Llama 3, arXiv 2407.21783, section 3.2)."""
    not_finite: Literal["stop", "skip"] = "stop"
    """Where the loss or the gradient norm is not finite: end the run, or leave the update out and count the step."""
    spike: Spike | None = None
    """What becomes of a spike; null: it is a step like the others."""
    batch_ramp: BatchRamp | None = None
    """How a step grows to workload.global_batch, which is what plans are made for; null: it has that from the start."""
