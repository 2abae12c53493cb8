"""Seconds of one part of the model, one micro-batch on one rank: compute by class of kernel, and what is exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.time.kernels import (
    CLASSES,
    Kernels,
    Seconds,
    Share,
    Vector,
    add,
    both,
    kernels,
    launched,
    on_rank,
    scaled,
)
from dsc.compiler.planner.time.ops import OpCost, by_kept_codes
from dsc.compiler.planner.time.sharing import PartSharing, StageSharing
from dsc.compiler.planner.time.traffic import Communication, Traffic

UNSHARED = ("cast", "memory")  # classes that wait for memory: fewer multiprocessors do not slow them down
SHARED = tuple(place for place, name in enumerate(CLASSES) if name not in UNSHARED)


class Pass(NamedTuple):
    """A part, or a stage of parts, in one direction: one micro-batch on one rank, in seconds."""

    compute: Vector
    """By class of kernel."""
    slowed: Vector
    """The same in an F&B pair, whose all-to-alls take their multiprocessors from parts that have any."""
    exchange: float = 0.0
    """Expert all-to-alls with nothing beside them."""
    hidden_exchange: float = 0.0
    """The same beside compute, on their share of the multiprocessors."""
    other: float = 0.0
    """Exposed time of tensor, context and data parallelism's collectives, which no pair hides."""

    @property
    def seconds(self) -> float:
        return sum(self.compute) + self.exchange + self.other

    def times(self, factor: float) -> Pass:
        return Pass(
            scaled(self.compute, factor),
            scaled(self.slowed, factor),
            self.exchange * factor,
            self.hidden_exchange * factor,
            self.other * factor,
        )


def together(passes: Sequence[Pass]) -> Pass:
    """One after the other."""
    return Pass(
        add(one.compute for one in passes),
        add(one.slowed for one in passes),
        sum(one.exchange for one in passes),
        sum(one.hidden_exchange for one in passes),
        sum(one.other for one in passes),
    )


class Computing(NamedTuple):
    """Of one part: forward, backward of its input with what is recomputed, backward of its weights."""

    vectors: tuple[Vector, Vector, Vector]
    """By class of kernel."""
    seconds: tuple[float, float, float]
    shared: float
    """Of all three, what communication can take multiprocessors from."""


class Sums(NamedTuple):
    """Seconds of one part, added up: what times of stages are made of."""

    forward: float
    backward_input: float
    backward_weight: float
    compute: tuple[float, float, float]
    """Of each pass."""
    slowed: float
    hidden_exchange: float
    other: float


class PartTimes:
    """Of the parts of one model on one machine, each computed once for each micro-batch and division of it."""

    def __init__(
        self,
        ops: Mapping[str, tuple[OpCost, ...]],
        shared: Mapping[str, tuple[OpCost, ...]],
        communication: Communication,
        hardware: Hardware,
        length: int,
        keeps_codes: bool = True,
    ) -> None:
        """`shared`: the ops where ranks share the experts out. `keeps_codes`: of weights, in layouts that do."""
        self._keeps_codes = keeps_codes
        self._ops = ops, shared
        self._communication = communication
        self._hardware = hardware
        self._length = length
        self._routed = frozenset(kind for kind, some in ops.items() if any(op.routed for op in some))
        self._left = 1 - hardware.calibration.communication_share.value  # of the multiprocessors, in an F&B pair
        self._kernels = cache(self._kernels_of)
        self._parted = cache(lambda *key: self._kernels(*key).parted())
        self._alike = cache(self._alike_of)
        self._compute = cache(self._compute_of)
        self._computing = cache(self._computing_of)
        self.sums = cache(self._sums_of)

    def sharing(self, kind: str, of_stage: StageSharing) -> PartSharing:
        """What has no experts is the same whatever shares them."""
        return of_stage.sharing if kind in self._routed else of_stage.sharing._replace(ep=1, etp=1)

    def passes(self, kind: str, sharing: PartSharing, recompute: tuple[str, ...]) -> tuple[Pass, Pass, Pass]:
        """Forward, backward of its input with what is recomputed, backward of its weights."""
        work, traffic = self._of_part(kind, sharing, recompute)
        left = self._left if traffic.exchange else 1.0

        def a_pass(vector: Vector, exchanges: int, other: float) -> Pass:
            slowed = tuple(t if name in UNSHARED else t / left for name, t in zip(CLASSES, vector, strict=True))
            exchange, hidden = exchanges * traffic.exchange, exchanges * traffic.hidden
            return Pass(vector, slowed, exchange, hidden, other).times(traffic.slower)

        forward, backward, weight = work.vectors
        return (
            a_pass(forward, 1, traffic.forward_other),
            a_pass(backward, traffic.times_in_backward, traffic.backward_other),
            a_pass(weight, 0, 0.0),
        )

    def _sums_of(self, kind: str, sharing: PartSharing, recompute: tuple[str, ...], exchanges: bool = True) -> Sums:
        work, traffic = self._of_part(kind, sharing, recompute, exchanges)
        forward, backward, weight = (traffic.slower * seconds for seconds in work.seconds)
        slowed = forward + backward + weight
        if traffic.exchange:
            slowed += traffic.slower * work.shared * (1 / self._left - 1)
        again = traffic.times_in_backward
        return Sums(
            forward + traffic.slower * (traffic.exchange + traffic.forward_other),
            backward + traffic.slower * (again * traffic.exchange + traffic.backward_other),
            weight,
            (forward, backward, weight),
            slowed,
            traffic.slower * (1 + again) * traffic.hidden,
            traffic.slower * (traffic.forward_other + traffic.backward_other),
        )

    def _of_part(
        self, kind: str, sharing: PartSharing, recompute: tuple[str, ...], exchanges: bool = True
    ) -> tuple[Computing, Traffic]:
        share = sharing.share
        work = self._computing(kind, sharing.micro_batch, share, sharing.codes, recompute)
        full, exchanges = "full" in recompute, exchanges and kind in self._routed
        ops = self._ops[share.experts > 1][kind]
        return work, self._communication.of_part(kind, ops, sharing, full, exchanges)

    def _computing_of(
        self, kind: str, micro_batch: int, share: Share, codes: bool, recompute: tuple[str, ...]
    ) -> Computing:
        compute = self._compute(kind, micro_batch, share, codes and self._keeps_codes)
        again = compute.recompute(recompute)
        vectors = (compute.forward, add((compute.input_gradient, again)), compute.weight_gradient)
        shared = sum(vector[place] for vector in vectors for place in SHARED)
        forward, backward, weight = (sum(vector) for vector in vectors)
        return Computing(vectors, (forward, backward, weight), shared)

    def _compute_of(self, kind: str, micro_batch: int, share: Share, codes: bool) -> Seconds:
        key = kind, micro_batch, share.experts > 1, codes
        _, of_experts = self._parted(*key)
        times = both(self._alike(*key, share.tokens, share.dense), on_rank(of_experts, self._hardware, share))
        return launched(times, self._kernels(*key), self._hardware)

    def _alike_of(self, kind: str, micro_batch: int, away: bool, codes: bool, tokens: int, dense: int) -> Seconds:
        """Of the kernels that are none of the experts'."""
        alike, _ = self._parted(kind, micro_batch, away, codes)
        return on_rank(alike, self._hardware, Share(tokens, dense))

    def _kernels_of(self, kind: str, micro_batch: int, away: bool, codes: bool) -> Kernels:
        """`away`: experts work for other ranks' tokens too. `codes`: those of weights are there already."""
        ops = self._ops[away][kind]
        some = tuple(by_kept_codes(op) for op in ops) if codes else ops
        return kernels(some, self._hardware, micro_batch, self._length)
