"""What each kind of part keeps of a micro-batch, and what it needs for a moment: read off the graph once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

from dsc.compiler.graph.dim import Axis, B, S
from dsc.compiler.graph.saved import Storage
from dsc.compiler.planner.layout.layout import Activations, Layout
from dsc.compiler.planner.parts.masks import in_halves, masks
from dsc.compiler.planner.parts.parts import Part
from dsc.compiler.planner.parts.recompute import SCALED_TILE, Kept, attended, dispatched, fp8_storages, inside, kept
from dsc.compiler.planner.parts.shard import Extent, extent
from dsc.compiler.planner.parts.working import Moments, backward_moments, forward_moments

SCALE = 4
"""Bytes of a tile's scale."""


@dataclass(frozen=True)
class Held:
    """What one part keeps of one micro-batch, before sharding."""

    storages: tuple[tuple[Storage, Extent], ...]
    """What nobody else keeps, in the order of saving."""
    shared: tuple[tuple[Storage, Extent], ...]
    """What other parts of the same stage may keep too: it counts once."""
    forward: int
    """The most bytes that forward needs for a moment, less what it keeps."""
    backward: int
    """The same for backward, less what was kept."""
    again: int
    """What of that is made again."""
    put_off: Extent
    """What waits beside what is kept where a backward of weights follows that of the input by itself: gradients, and
    what the first of the two has made again."""
    until_weights: Extent
    """All that is held between the two where pairs take turns: the rest is gone, and what was made again is there."""
    keeps_input: bool

    @cached_property
    def own(self) -> Extent:
        return sum((size for one, size in self.storages if not is_logits(one)), Extent())

    @cached_property
    def logits(self) -> Extent:
        return sum((size for one, size in self.storages if is_logits(one)), Extent())


class Keeping(NamedTuple):
    """What one part keeps of a micro-batch, whatever the sizes are."""

    part: Part
    kept: Kept
    small: frozenset[Storage]
    """What is kept in FP8."""
    attended: frozenset[Storage]
    """What is kept in 12 bits."""
    extents: tuple[Extent, ...]
    """One byte of each that is kept."""
    inside: tuple[Storage, ...]
    masks: frozenset[Storage]
    forward: Moments
    backward: Moments


def is_logits(storage: Storage) -> bool:
    return Axis.VOCABULARY in storage.type.axes


class PartMemory:
    """Of each kind of part, whole: no layout divides it yet."""

    def __init__(self, parts: Sequence[Part], sequence_length: int, away: Sequence[Part] = ()) -> None:
        """`away`: the same parts where ranks share the experts out, if they run other ops there."""
        self._sequence_length = sequence_length
        # The last of each kind: what the first layer receives is read by the table of rotations too, which is no layer.
        self.examples = {part.kind: part for part in parts}
        self._away = {part.kind: part for part in away or parts}
        self._shared = _shared(parts) | _shared(away)
        self._held: dict[tuple[str, tuple[str, ...], Activations, int, bool, int, int, int], Held] = {}
        self._counted: dict[tuple[Storage, int], int] = {}
        self._keeping = cache(self._keeps)

    def of(
        self,
        kind: str,
        recompute: tuple[str, ...],
        activations: Activations,
        micro_batch: int,
        away: bool = False,
        context: int = 1,
        tensor: int = 1,
        slices: int = 1,
    ) -> Held:
        """What a part of this kind keeps of one micro-batch. `away`: experts work for other ranks' tokens too.

        `context`: ranks that share a sequence. What each of them has of all of it counts so many times. `tensor`: the
        same of ranks that share heads and widths. `slices`: of ranks that share an expert's width, for what lives for a
        moment.
        """
        key = (kind, recompute, activations, micro_batch, away, context, tensor, slices)
        if key not in self._held:
            self._held[key] = self._measure(*key)
        return self._held[key]

    def on(self, kind: str, layout: Layout) -> Held:
        away = layout.copy > 1
        among = layout.cp, layout.tp, layout.etp
        return self.of(kind, layout.recompute, layout.activations, layout.micro_batch, away, *among)

    def _measure(
        self,
        kind: str,
        recompute: tuple[str, ...],
        activations: Activations,
        micro_batch: int,
        away: bool,
        context: int,
        tensor: int,
        slices: int,
    ) -> Held:
        keeps = self._keeping(kind, recompute, activations, away)
        times = dict.fromkeys(keeps.part.whole.storages, context)
        times |= dict.fromkeys(keeps.part.whole.halves, 2 if context > 1 else 1)
        times |= {one: times.get(one, 1) * tensor for one in keeps.part.whole_on_each}

        def size(one: Storage) -> int:
            numbers = self._numbers(one, micro_batch) * times.get(one, 1)
            numbers = in_halves(numbers, context) if context > 1 and one in keeps.masks else numbers
            if one in keeps.small or one in keeps.attended:
                return numbers * (12 if one in keeps.attended else 8) // 8 + numbers // SCALED_TILE * SCALE
            return numbers * one.type.dtype.bytes

        def of_moment(one: Storage) -> int:
            return size(one) * (slices if slices > 1 and extent(one.type, 1).rows else 1)

        beside = sum(map(of_moment, keeps.inside))
        sizes = [(one, size(one), byte) for one, byte in zip(keeps.kept.storages, keeps.extents, strict=True)]
        sized = [(one, byte.times(bytes)) for one, bytes, byte in sizes]
        # What is kept lives for a moment like all else; in forward it stays, and backward begins with it.
        all_kept = sum(of_moment(one) for one in set(keeps.kept.storages))
        return Held(
            tuple(pair for pair in sized if pair[0] not in self._shared),
            tuple(pair for pair in sized if pair[0] in self._shared),
            keeps.forward.most(of_moment) - all_kept + beside,
            keeps.backward.most(of_moment) - all_kept + beside,
            sum(map(of_moment, keeps.kept.remade)),
            sum((extent(one.type, size(one)) for one in (*keeps.part.weighed, *keeps.kept.remade)), Extent()),
            sum((extent(one.type, size(one)) for one in keeps.part.put_off), Extent()),
            keeps.part.steps[0].inputs[0] in keeps.kept.storages,
        )

    def _keeps(self, kind: str, recompute: tuple[str, ...], activations: Activations, away: bool) -> Keeping:
        part = (self._away if away else self.examples)[kind]
        steps = part.steps
        small, twelve = (fp8_storages(steps), attended(steps)) if activations == "fp8" else (frozenset(), frozenset())
        found = kept(steps, recompute, twelve, part.layer)
        received = dispatched(steps) if away else ()
        if "full" in recompute:
            found = replace(found, remade=(*found.remade, *received))
        else:
            found = replace(found, storages=(*found.storages, *received))
        return Keeping(
            part,
            found,
            small,
            twelve,
            tuple(extent(one.type, 1) for one in found.storages),
            inside(steps),
            frozenset(masks(steps)),
            forward_moments(found.steps, found),
            backward_moments(found.steps, found),
        )

    def _numbers(self, storage: Storage, micro_batch: int) -> int:
        """Elements, counted once for all that ask."""
        key = (storage, micro_batch)
        if key not in self._counted:
            sizes = {B.name: micro_batch, S.name: self._sequence_length}
            self._counted[key] = storage.type.numel.value(sizes)
        return self._counted[key]


def _shared(parts: Sequence[Part]) -> frozenset[Storage]:
    """What more than one part reads."""
    readers: dict[str, str] = {}  # by place, which is what tells them apart
    shared = set()
    for part in parts:
        for step in part.steps:
            for one in step.inputs:
                if one is not None and readers.setdefault(one.place, part.name) != part.name:
                    shared.add(one)
    return frozenset(shared)
