"""Bytes of one pipeline stage on one rank: activations of a micro-batch, logits, and what lives for a moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.memory.held import Held, PartMemory
from dsc.compiler.planner.parts.parts import EMBEDDING, Part
from dsc.compiler.planner.parts.shard import Elements, Extent, elements, share

Division = tuple[object, ...]


def division(layout: Layout) -> Division:
    """What the bytes of a stage depend on."""
    sizes = (layout.cp, layout.tp, layout.ep, layout.etp, layout.micro_batch)
    return (*sizes, layout.recompute, layout.activations)


@dataclass(frozen=True)
class StageBytes:
    """Of one stage on one rank."""

    by_kind: tuple[tuple[str, int], ...]
    """Activations of one micro-batch, by kind of part."""
    activations: int
    """Their sum."""
    logits: int
    """Of one micro-batch."""
    working: int
    """Of the part that needs most, forward or backward, whatever the number of micro-batches."""
    beside_waiting: int
    """The same where what backward made again is among what waits for W."""
    put_off: int
    """Gradients of one micro-batch that wait for its backward of weights."""
    until_weights: int
    """What one micro-batch holds until then where pairs take turns."""
    keeps_input: bool
    """What other ranks sent, if anything, is among the activations."""

    @property
    def kept(self) -> int:
        return self.activations + self.logits


class PartBytes(NamedTuple):
    """Of one part on one rank, for one micro-batch."""

    held: Held
    """Before sharding."""
    activations: int
    """Of what nobody else keeps."""
    logits: int
    kept: int
    """Of both together."""
    working: int
    """For a moment, forward or backward."""
    beside_waiting: int
    """The same without what backward makes again."""


class StageMemory:
    """Of runs of parts under a layout."""

    def __init__(
        self, parts: Sequence[Part], sequence_length: int, parameter_bytes: int, away: Sequence[Part] = ()
    ) -> None:
        self.parts = PartMemory(parts, sequence_length, away)
        self._parameter_bytes = parameter_bytes
        self._known: dict[tuple[object, ...], StageBytes] = {}
        self._parts: dict[tuple[str, Division], PartBytes] = {}
        self._weights: dict[str, tuple[Elements, ...]] = {}
        self._gradients: dict[tuple[str, int, int], int] = {}

    def of(self, kinds: tuple[str, ...], layout: Layout) -> StageBytes:
        """A stage of such parts, in this order, on one rank."""
        key = (kinds, division(layout))
        if key not in self._known:
            self._known[key] = self._stage(kinds, layout)
        return self._known[key]

    def _stage(self, kinds: tuple[str, ...], layout: Layout) -> StageBytes:
        parts = {kind: self._part(kind, layout) for kind in kinds}
        by_kind: dict[str, int] = {}
        known: set[Storage] = set()
        for kind, count in Counter(kinds).items():  # what parts share stands with the first
            one = parts[kind]
            fresh = sum((size for storage, size in one.held.shared if storage not in known), Extent())
            known.update(storage for storage, _ in one.held.shared)
            by_kind[kind] = (one.held.own + fresh).on(layout) + (count - 1) * one.activations
        later, peak, beside_waiting = 0, 0, 0
        for kind in reversed(kinds):
            peak = max(peak, parts[kind].working - later)
            beside_waiting = max(beside_waiting, parts[kind].beside_waiting - later)
            later += parts[kind].kept
        logits = sum(parts[kind].logits for kind in kinds)
        # Without an input, no backward of it: that of all is put off.
        put_off = 0 if EMBEDDING in kinds else sum(parts[kind].held.put_off.on(layout) for kind in kinds)
        keeps_input = EMBEDDING in kinds or parts[kinds[0]].held.keeps_input
        until_weights = sum(parts[kind].held.until_weights.on(layout) for kind in kinds)
        activations = sum(by_kind.values())
        return StageBytes(
            tuple(by_kind.items()), activations, logits, peak, beside_waiting, put_off, until_weights, keeps_input
        )

    def _part(self, kind: str, layout: Layout) -> PartBytes:
        key = (kind, division(layout))
        if key not in self._parts:
            one, ranks = self.parts.on(kind, layout), layout.cp * layout.tp
            gradient = self._largest_gradient(kind, layout)
            self._parts[key] = PartBytes(
                one,
                one.own.on(layout),
                one.logits.on(layout),
                (one.own + one.logits).on(layout),
                max(share(one.forward, ranks), share(one.backward, ranks) + gradient),
                max(share(one.forward, ranks), share(one.backward - one.again, ranks) + gradient),
            )
        return self._parts[key]

    def _largest_gradient(self, kind: str, layout: Layout) -> int:
        """Of the weights of one op, as autograd makes it before it is added up."""
        key = (kind, layout.tp, layout.copy)
        if key not in self._gradients:
            if kind not in self._weights:
                self._weights[kind] = tuple(_weights_of(step) for step in self.parts.examples[kind].steps)
            numbers = max(some.dense_on(layout) + some.experts_on(layout) for some in self._weights[kind])
            self._gradients[key] = numbers * self._parameter_bytes
        return self._gradients[key]


def _weights_of(step: Step) -> Elements:
    return elements(parameter.substitute(step.sizes) for parameter in step.node.op.parameters())
