"""The memory of a GPU that serves: weights, the decode step's arena, and how much of the latent cache fits beside them.

Attention is tensor parallel within groups of `tp` GPUs and data parallel over `dp` such groups; experts lie on all of
them, a fixed number of slots a GPU (DeepSeek-V3 report, section 3.4). Nothing is allocated while serving.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from dsc.compiler.graph.cache_rows import CacheRow, cache_rows
from dsc.compiler.graph.dim import Axis, B, C, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Parameter
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.planner.machine.calibration import Figure
from dsc.compiler.planner.memory.lines import CONTEXT, EXPERT_BUFFER, NCCL, MemoryLine
from dsc.compiler.planner.parts.shard import share
from dsc.compiler.planner.serving.arena import Arena, Interval, lives, place, sized
from dsc.compiler.planner.serving.served import ROTARY, Graphs, Phase, Served
from dsc.spec.model import ModelSpec

ROOT, LOSS = "Model.forward", "Model.loss"
MTP, FIRST = "mtp.", "mtp.0."  # paths of the modules of multi-token prediction, of which the first serves
STRAIGHT = 4  # tries along a line

Rows = Literal["plain", "fp8"]


class DoesNotFit(ValueError):
    """Not even one sequence does; the message has the arithmetic, `lines` what that one needs."""

    def __init__(self, message: str, lines: tuple[MemoryLine, ...]) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True)
class Serving:
    """How the GPUs of one deployment share a model."""

    tp: int
    """Tensor parallelism of attention, with sequence parallelism around it."""
    dp: int
    """Groups of tp GPUs, each with sequences of its own."""
    slots: int = 0
    """Routed experts of each MoE layer on one GPU, redundant ones included."""
    shared: bool = True
    """Every GPU has the shared experts too; else one of its slots may hold them."""
    dense_tp: int = 1
    """Tensor parallelism of dense feed-forwards."""
    ep: int | None = None
    """GPUs that share the routed experts, each such group with all of them; null: all GPUs are one."""

    @property
    def gpus(self) -> int:
        return self.tp * self.dp

    @property
    def shares_experts(self) -> bool:
        """Whether tokens go to other GPUs for their experts."""
        return self.slots > 0 and (self.ep or self.gpus) > 1

    def redundant(self, experts: int) -> int:
        """Slots beyond one for each routed expert; with shared=False, those of shared experts are among them."""
        return self.slots * (self.ep or self.gpus) - experts


@dataclass(frozen=True)
class Request:
    """What one group of tp GPUs works on at once."""

    phase: Phase
    context: int
    """Tokens of each sequence in the cache, the new ones included."""
    new_tokens: int = 1
    """Of each sequence in one step: a chunk of the prompt, or one and the guesses of multi-token prediction."""
    at_once: int | None = None
    """Sequences of one step; null: all that the cache holds, as in decode."""

    def stepping(self, sequences: int) -> int:
        """Of so many in the cache, those of one step."""
        return sequences if self.at_once is None else min(sequences, self.at_once)


@dataclass(frozen=True)
class Storing:
    """How the cache is kept."""

    rows: Rows = "plain"
    """In their own type, or as FP8 codes with scales and a bfloat16 rotary part."""
    page: int = 64
    """Tokens."""


@dataclass(frozen=True)
class ServingPlan:
    """One GPU of a deployment."""

    lines: tuple[MemoryLine, ...]
    capacity: int
    arena: Arena
    page_bytes: int
    """Of all layers."""
    pages: int
    """That fit beside everything else."""
    sequences: int
    """At once in one group of tp GPUs, at the context length asked for."""

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)


class ServingMemory:
    """The graphs of a spec in one phase, read once. With `drafts`, multi-token prediction guesses ahead."""

    def __init__(self, spec: ModelSpec, training: Graph, graphs: Graphs, phase: Phase, drafts: bool = False) -> None:
        self.spec = spec
        self.drafts = drafts
        self._alone = Served(graphs.alone, phase, drafts)
        self._shared = self._alone if graphs.shared is graphs.alone else Served(graphs.shared, phase, drafts)
        self.rows_of = {**cache_rows(training, LOSS), **cache_rows(training, ROOT)}
        """By the path of the module that attends."""
        used = (rows for path, rows in self.rows_of.items() if path.startswith(FIRST) * drafts or MTP not in path)
        self.rows = tuple(row for rows in used for row in rows)
        self._arena = cache(self._arena_of)
        self._weights = cache(self._weights_of)
        self._lives = cache(lambda served: lives(served.steps))

    def served(self, serving: Serving) -> Served:
        """What each GPU of a deployment runs."""
        return self._shared if serving.shares_experts else self._alone

    def plan(self, serving: Serving, request: Request, storing: Storing, capacity: int) -> ServingPlan:
        """With as many sequences as fit. Raises DoesNotFit."""
        weights = tuple(self.weights(serving, storing))
        fixed = sum(line.bytes for line in weights)
        page_bytes = storing.page * self.token_bytes(serving, storing)
        pages_each = share(request.context, storing.page)
        windows_each = self.window_bytes(serving, storing, request.context)
        each = pages_each * page_bytes + windows_each

        def beside(sequences: int) -> tuple[MemoryLine, ...]:
            return tuple(self._beside(serving, request, self.arena(serving, request, sequences), sequences, pages_each))

        def needed(sequences: int) -> int:
            return fixed + sum(line.bytes for line in beside(sequences)) + sequences * each

        if needed(1) > capacity:
            lines = (*weights, *beside(1), *_windows(1, windows_each), _pages(pages_each, page_bytes, storing))
            raise DoesNotFit(
                f"one sequence of {request.context} tokens needs {needed(1):,} bytes of {capacity:,}", lines
            )
        most = _last(needed, capacity, (capacity - fixed) // each + 1)
        others = (*beside(most), *_windows(most, windows_each))
        left = capacity - fixed - sum(line.bytes for line in others)
        pages = left // page_bytes if page_bytes else 0
        lines = (*weights, *others, _pages(pages, page_bytes, storing))
        return ServingPlan(lines, capacity, self.arena(serving, request, most), page_bytes, pages, most)

    def arena(self, serving: Serving, request: Request, sequences: int) -> Arena:
        """Of a step with so many sequences in the cache."""
        alike = Serving(serving.tp, 2, int(serving.shares_experts))
        return self._arena(alike, request.new_tokens, request.context, request.stepping(sequences))

    def _arena_of(self, serving: Serving, new_tokens: int, context: int, sequences: int) -> Arena:
        return place(self.values(serving, Request("decode", context, new_tokens), sequences))

    def weights(self, serving: Serving, storing: Storing) -> Iterator[MemoryLine]:
        """Of one GPU, by what divides them."""
        sums: dict[str, int] = {}
        names: dict[str, dict[str, None]] = {}
        for (name, parameter, size), count in self._weights(self.served(serving)).items():
            kind, (part, of) = held(parameter, serving)
            sums[kind] = sums.get(kind, 0) + count * share(size * part, of)
            names.setdefault(kind, {})[name] = None
        for kind, total in sums.items():
            if total:
                yield MemoryLine(
                    f"{kind} weights", total, "derived", "weights as the engine prepares them", tuple(names[kind])
                )

    def _weights_of(self, served: Served) -> Mapping[tuple[str, Parameter | None, int], int]:
        """How many there are of each that are alike in all layers."""
        every = (one for weights in served.weights.values() for one in weights)
        return Counter((_short(one.name), one.parameter, one.bytes) for one in every)

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter that inference reads, by full name."""
        every = (one for weights in self._alone.weights.values() for one in weights)
        return {one.name: one.parameter for one in every if one.parameter is not None}

    def token_bytes(self, serving: Serving, storing: Storing) -> int:
        """What one token leaves on one GPU in the caches that keep all tokens."""
        return sum(self.row_bytes(row, serving, storing) for row in self.rows if row.window is None)

    def window_bytes(self, serving: Serving, storing: Storing, context: int) -> int:
        """What one sequence of so many tokens has on one GPU in the caches of windows, which it fills once."""
        windowed = [row for row in self.rows if row.window is not None]
        return sum(row.kept(context) * self.row_bytes(row, serving, storing) for row in windowed)

    def row_bytes(self, row: CacheRow, serving: Serving, storing: Storing) -> int:
        """Of one row on one GPU. Tensor parallelism divides heads; what has none, such as a latent, is on each rank."""
        stored = row.in_fp8_cache() if storing.rows == "fp8" else row
        return share(stored.bytes, serving.tp if Axis.HEADS in row.axes else 1)

    @property
    def has_fp8_rows(self) -> bool:
        """Whether an FP8 cache would keep codes of anything."""
        return any(row.has_fp8_form for row in self.rows)

    def values(self, serving: Serving, request: Request, sequences: int) -> tuple[Interval, ...]:
        """What a step makes on one GPU, and for how long."""
        sizes = {B.name: sequences, S.name: request.new_tokens, C.name: request.context}

        @cache  # layers have the same types
        def size(type: TensorType) -> int:
            return share(type.bytes.value(sizes), serving.tp if divided(type) else 1)

        return sized(self._lives(self.served(serving)), size)

    def _beside(
        self, serving: Serving, request: Request, arena: Arena, sequences: int, pages_each: int
    ) -> Iterator[MemoryLine]:
        """Everything but weights and cache."""
        count = len(arena.intervals)
        largest = sorted(arena.intervals, key=lambda one: (-one.bytes, one.first, one.name))[:3]
        source = f"{count:,} values of one step, at most {arena.least:,} bytes alive; the largest are named"
        yield MemoryLine("arena", arena.bytes, "derived", source, tuple(one.name for one in largest))
        entries = sequences * (pages_each + 1) * DType.INT32.bytes
        yield MemoryLine("block tables", entries, "derived", "int32: the pages of each sequence, and its length")
        yield _assumed("CUDA context", round(CONTEXT.value), CONTEXT)
        if serving.gpus > 1:
            yield _assumed("collective buffers", round(NCCL.value), NCCL)
        if serving.shares_experts and self._shared is self._alone:  # the package's rows are values of the step
            yield self._expert_buffers(serving, request, sequences)

    def _expert_buffers(self, serving: Serving, request: Request, sequences: int) -> MemoryLine:
        hidden = self.spec.hidden_size
        if request.phase == "prefill":
            return _assumed("expert buffers", round(EXPERT_BUFFER.value * hidden * DType.BF16.bytes), EXPERT_BUFFER)
        tokens = share(request.stepping(sequences) * request.new_tokens, serving.tp)
        size = low_latency_bytes(tokens, hidden, serving.slots * (serving.ep or serving.gpus))
        return MemoryLine("expert buffers", size, "assumed", "DeepEP csrc/legacy/config.hpp, LowLatencyLayout")


def low_latency_bytes(tokens: int, hidden: int, experts: int) -> int:
    """DeepEP's buffers for decode: sending and receiving, each twice, for `tokens` of every rank to any expert.

    A message of dispatch is a control word of 16 bytes and the token; one of combine has 4 bytes of range for every 128
    numbers beside it. Signals are an int32 for each expert.
    """
    dispatch = 16 + max(2 * hidden, hidden + hidden // 128 * 4)
    combine = hidden // 128 * 4 + 2 * hidden
    sent = max(tokens * dispatch, experts * tokens * combine)
    received = experts * tokens * max(dispatch, combine)
    signals = share(experts * 4, 128) * 128
    return 2 * (sent + received + signals)


def divided(type: TensorType) -> bool:
    """Whether tensor parallelism divides a value: by its heads, or by its tokens between the layers' products."""
    return Axis.BATCH in type.axes and (Axis.SEQUENCE in type.axes or Axis.HEADS in type.axes)


def held(parameter: Parameter | None, serving: Serving) -> tuple[str, tuple[int, int]]:
    """What a parameter is called in the ledger, and the part of it on one GPU as (numerator, denominator)."""
    if parameter is None:
        return ROTARY, (1, 1)
    axes = parameter.type.axes
    if parameter.is_routed:
        return "routed expert", (serving.slots, parameter.type.shape[0].value())
    if Axis.SHARED_EXPERTS in axes:
        return "shared expert", (int(serving.shared), 1)
    if Axis.FEED_FORWARD in axes:
        return "dense", (1, serving.dense_tp)
    if Axis.VOCABULARY in axes:
        return "vocabulary", (1, serving.tp)
    return "attention", (1, serving.tp if Axis.HEADS in axes else 1)


def _short(name: str) -> str:
    """Without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _last(needed: Callable[[int], int], capacity: int, too_many: int) -> int:
    """The largest number that needs no more than the capacity, where 1 does and `too_many` does not.

    Needs grow with the number, nearly along a line: where that line meets the capacity is looked at first, and after a
    few times the middle, in case it is no line.
    """
    low, high, turn = 1, too_many, 0
    at_low, at_high = needed(low), needed(high)
    while high - low > 1:
        along = (capacity - at_low) * (high - low) // (at_high - at_low)
        middle = min(max(low + (along if turn < STRAIGHT else (high - low) // 2), low + 1), high - 1)
        turn += 1
        found = needed(middle)
        if found <= capacity:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
    return low


def _pages(count: int, page_bytes: int, storing: Storing) -> MemoryLine:
    source = f"{count:,} pages of {storing.page} tokens, {page_bytes // storing.page:,} bytes a token"
    return MemoryLine("cache", count * page_bytes, "derived", source)


def _windows(sequences: int, each: int) -> tuple[MemoryLine, ...]:
    """None where no layer has a window."""
    source = f"{sequences:,} sequences, {each:,} bytes in the windows of each"
    return (MemoryLine("windows", sequences * each, "derived", source),) if each else ()


def _assumed(name: str, size: int, constant: Figure) -> MemoryLine:
    return MemoryLine(name, size, constant.provenance, constant.source)
