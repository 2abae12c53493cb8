"""Seconds of communication: of experts, of tensor and context parallelism within a stage, of weights, between ranks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from dsc.compiler.graph.dim import Axis, B, S
from dsc.compiler.graph.types import TensorType
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine import collectives
from dsc.compiler.planner.machine.collectives import FP8, Experts, ExpertTraffic, Group
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import EMBEDDING, HEAD
from dsc.compiler.planner.parts.shard import Elements
from dsc.compiler.planner.parts.widths import BYTES
from dsc.compiler.planner.time.ops import OpCost
from dsc.compiler.planner.time.overlap import OtherEngines
from dsc.compiler.planner.time.sharing import PartSharing, StageSharing
from dsc.compiler.planner.time.terms import Terms
from dsc.spec.model import ModelSpec

FEED_FORWARD = frozenset((Axis.FEED_FORWARD, Axis.SHARED_EXPERTS))

WAITS_OF_HOPS = 3
"""Of the host in a layer's forward, beyond that of a direct exchange, which is an op of the graph that is timed: for
the rows of each hop, and once more for what a hop sends."""


class Traffic(NamedTuple):
    """Communication of one part, forward, in seconds."""

    exchange: float
    """Expert all-to-alls with nothing beside them."""
    hidden: float
    """The same beside compute."""
    times_in_backward: int
    """How often that happens again in backward."""
    forward_other: float
    """What no pair hides."""
    backward_other: float
    slower: float
    """What uneven routing makes of all times."""


class Communication:
    """Of one model on one machine. Between layers goes `stream`; within a layer, its sublayers read hidden states."""

    def __init__(
        self,
        spec: ModelSpec,
        stream: TensorType,
        hardware: Hardware,
        others: OtherEngines | None = None,
        sent: Mapping[str, tuple[Terms, ...]] | None = None,
    ) -> None:
        """`sent`: what tensor parallelism sends in a part of each kind, where the graph says it."""
        self._sent = sent or {}
        self.experts = experts_of(spec)
        self._hardware = hardware
        self._hidden = spec.hidden_size
        self._length = spec.workload.sequence_length
        self._stream_bytes = stream.bytes.value({B.name: 1, S.name: self._length})
        self._width = BYTES[spec.precision.parameters]
        self._gradient_width = BYTES[spec.precision.optimizer.gradients]
        self._others = others
        self._dispatch_width: float = FP8 if others and "experts" in others.fp8_products else self._width
        self._exchange = cache(self._exchange_of)

    def of_part(self, kind: str, ops: tuple[OpCost, ...], sharing: PartSharing, full: bool, exchanges: bool) -> Traffic:
        """`full`: all of forward runs again in backward. `exchanges`: its experts' tokens go to other ranks."""
        exchange, hidden = self._exchange(sharing) if exchanges else (0.0, 0.0)
        tensor = self._tensor_parallel(kind, ops, sharing)
        context = self._context_parallel(ops, sharing)
        waits = self._waits(sharing) if exchanges else 0.0
        twice = 2 if full else 1  # forward's communication runs again with forward
        return Traffic(
            exchange,
            hidden,
            twice,
            tensor + context + waits,
            twice * (tensor + context) + (twice - 1) * waits,
            self._hardware.calibration.imbalance.value if exchange else 1.0,
        )

    def _waits(self, sharing: PartSharing) -> float:
        """Of the host for the second hop, with nothing beside it; backward knows what was sent."""
        several = self._others is None and collectives.hops(sharing.ep, sharing.etp, self._hardware) > 1
        several &= not sharing.deduplicates
        return several * WAITS_OF_HOPS * self._hardware.calibration.host_wait.value

    def _rows(self, sharing: PartSharing) -> float:
        """Tokens of a micro-batch on one rank."""
        return sharing.micro_batch * self._length / (sharing.cp * sharing.tp)

    def _exchange_of(self, sharing: PartSharing) -> tuple[float, float]:
        """Dispatch and combine of a layer, alone and beside compute; backward mirrors them."""
        if self.experts is None:
            return 0.0, 0.0
        hardware, calibration = self._hardware, self._hardware.calibration
        alone = beside = 0.0
        ways = ((self._dispatch_width, calibration.overlapped_dispatch), (self._width, calibration.overlapped_combine))
        for width, reached in ways:
            volume = self._dispatched(self.experts, width, sharing)
            alone += volume.seconds(hardware)
            beside += volume.seconds(hardware, reached.value)
            if (
                self._others is not None and sharing.etp > 1
            ):  # which gather rows from ranks that share an expert's width
                total = self._rows(sharing) * self.experts.top_k * self._hidden * width * sharing.etp
                gathered = collectives.all_gather(total, Group(sharing.etp), hardware)
                alone, beside = alone + gathered, beside + gathered
        return alone, beside

    def _dispatched(self, experts: Experts, width: float, sharing: PartSharing) -> ExpertTraffic:
        """What a rank sends of its tokens to their experts.

        By DeepEP the package sends a token once to each rank of them. Else it sends one once to each domain that the
        experts fill, or a row for each of its experts; and as many where ranks share an expert's width. Others always
        send it once to each domain, in FP8 where their products are.
        """
        rows, hardware = self._rows(sharing), self._hardware
        if self._others is not None:
            group = Group(sharing.ep, sharing.etp)
            return collectives.expert_all_to_all(rows, self._hidden, width, experts, group, hardware)
        group, slices = Group(sharing.ep * sharing.etp), sharing.etp
        if sharing.deduplicates:
            return collectives.deduplicated_all_to_all(rows, self._hidden, width, experts, group, hardware)
        if collectives.hops(sharing.ep, slices, hardware) > 1:
            return collectives.expert_all_to_all(rows, self._hidden, width, experts, group, hardware, slices)
        return collectives.direct_all_to_all(rows * slices, self._hidden, width, experts, group, hardware)

    def _tensor_parallel(self, kind: str, ops: tuple[OpCost, ...], sharing: PartSharing) -> float:
        """The collectives of a part's graph; backward has as many.

        Where the graph has none: all-gather and reduce-scatter of hidden states around attention and around a
        feed-forward (arXiv 2205.05198).
        """
        if sharing.tp == 1:
            return 0.0
        if self._sent:
            sent = self.tensor_bytes(kind, sharing)
            return sum(collectives.all_gather(bytes, Group(sharing.tp), self._hardware) for bytes in sent)
        total = self._rows(sharing) * sharing.tp * self._hidden * self._width
        one = collectives.all_gather(total, Group(sharing.tp), self._hardware)
        if kind in (EMBEDDING, HEAD):
            return one
        attends = any(op.kernel_class == "attention" for op in ops)
        widens = any(op.weight_axes & FEED_FORWARD for op in ops)
        return 2 * one * (attends + widens)

    def tensor_bytes(self, kind: str, sharing: PartSharing) -> list[float]:
        """What a rank has of all ranks after each collective of one micro-batch, forward."""
        return [one.at(sharing.micro_batch, self._length) / sharing.cp for one in self._sent.get(kind, ())]

    def _context_parallel(self, ops: tuple[OpCost, ...], sharing: PartSharing) -> float:
        """Latents, or keys and values, of all ranks that share a sequence, gathered before attention; as long as the
        reduce-scatter of their gradients. Nothing runs beside either."""
        if sharing.cp == 1:
            return 0.0
        sent = self.context_bytes(ops, sharing)
        return collectives.all_gather(sent, Group(sharing.cp, sharing.tp), self._hardware) if sent else 0.0

    def context_bytes(self, ops: tuple[OpCost, ...], sharing: PartSharing) -> float:
        """Of the rows of whole sequences that attention of one micro-batch has on a rank."""
        by_heads = alike = 0.0
        for op in ops:
            if op.sent_bytes is not None:
                some, whole = (bytes.at(sharing.micro_batch, self._length) for bytes in op.sent_bytes)
                by_heads, alike = by_heads + some, alike + whole
        return by_heads / sharing.tp + alike

    def sharded_weights(
        self, compute: tuple[float, float, float], held: Elements, sharing: StageSharing, parts: int, beside: bool
    ) -> tuple[float, float, float]:
        """ZeRO-2 reduces gradients in every micro-batch, ZeRO-3 gathers weights too: what compute does not hide.

        Seconds more of each pass, whose compute takes so long and has so many parts. Nothing runs beside the gather of
        the first part, nor beside the reduction of the last. `beside`: with what they slow down there, for they take
        multiprocessors from compute.
        """
        gradients = self.across_data(held, self._gradient_width, sharing)
        weights = self.across_data(held, self._width, sharing) if sharing.zero == 3 else 0.0
        forward, backward, weight = compute
        return (
            self.exposed(weights, forward, parts, beside),
            self.exposed(weights, backward, parts, beside),
            self.exposed(gradients, weight, parts, beside),
        )

    def gathered_again(self, computing: float, held: Elements, sharing: StageSharing, parts: int) -> float:
        """Seconds more of a backward of weights by itself, for which ZeRO-3 gathers them a third time."""
        gradients = self.across_data(held, self._gradient_width, sharing)
        both = gradients + self.across_data(held, self._width, sharing)
        return self.exposed(both, computing, parts) - self.exposed(gradients, computing, parts)

    def exposed(self, moving: float, computing: float, parts: int, beside: bool = True) -> float:
        """Seconds more that a collective of each of so many parts takes beside compute: what that does not hide, and
        what it slows down."""
        share = self._hardware.calibration.communication_share.value if beside else 0.0
        return max(moving / parts, moving - computing) + share * min(moving, computing)

    def across_data(self, held: Elements, width: int, sharing: StageSharing) -> float:
        """One all-gather, or reduce-scatter, of dense weights and of experts across the ranks that share them."""
        tp, experts = sharing.sharing.tp, sharing.sharing.ep * sharing.sharing.etp
        amounts = [(held.expert / experts, Group(sharing.expert_ranks, experts))]
        if tp == 1:
            amounts.append((held.tensor + held.replicated, Group(sharing.dense_ranks)))
        else:  # what is whole on every tensor rank is shared by all of them
            amounts.append((held.tensor / tp, Group(sharing.dense_ranks, tp)))
            amounts.append((held.replicated, Group(sharing.dense_ranks * tp)))
        return sum(collectives.all_gather(width * count, group, self._hardware) for count, group in amounts)

    def transfer(self, layout: Layout) -> float:
        """Seconds that what a micro-batch's layers hand on takes to the next pipeline rank."""
        bytes = layout.micro_batch * self._stream_bytes / (layout.cp * layout.tp)
        return collectives.send(bytes, layout.dp * layout.cp * layout.tp, self._hardware)


def experts_of(spec: ModelSpec) -> Experts | None:
    """Of the router of its mixtures; None without any."""
    if "moe" not in spec.ffn_kinds:
        return None
    moe = spec.moe()
    return Experts(moe.n_routed_experts, moe.num_experts_per_tok, moe.router.n_group, moe.router.topk_group)
