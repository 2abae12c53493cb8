"""Seconds of kernels: max(FLOP / (peak * efficiency), bytes / (bandwidth * efficiency), floor)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import NamedTuple, get_args

from dsc.compiler.planner.machine.calibration import Figure, KernelClass
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.time.ops import ALWAYS, OpCost
from dsc.compiler.planner.time.terms import Terms

CLASSES: tuple[KernelClass, ...] = get_args(KernelClass)
POSITION = {kernel_class: position for position, kernel_class in enumerate(CLASSES)}


class Share(NamedTuple):
    """What one rank has of a micro-batch and of the weights: one part in so many."""

    tokens: int = 1
    dense: int = 1
    experts: int = 1
    slices: int = 1
    """Ranks that share an expert's width, of which each has all its rows."""


Vector = tuple[float, ...]  # seconds by class of kernel, in the order of CLASSES


class Asking(NamedTuple):
    """What of a plan's choices runs something in backward."""

    by: tuple[str, ...]
    unless: tuple[str, ...] = ()

    def among(self, chosen: tuple[str, ...]) -> bool:
        asked = any(name in chosen or name == ALWAYS for name in self.by)
        return asked and not any(name in chosen for name in self.unless)


class Seconds(NamedTuple):
    """One part, or some of its kernels, on one rank, with nothing else running."""

    forward: Vector
    input_gradient: Vector
    weight_gradient: Vector
    again: tuple[tuple[Asking, Vector], ...]
    """Forward once more, and casts, by what asks for them."""

    def recompute(self, chosen: tuple[str, ...]) -> Vector:
        """What backward runs again."""
        return add([time for asking, time in self.again if asking.among(chosen)])


NOTHING: Vector = (0.0,) * len(CLASSES)


def add(vectors: Iterable[Vector]) -> Vector:
    result = NOTHING
    for vector in vectors:
        result = tuple(map(operator.add, result, vector))
    return result


def scaled(vector: Vector, factor: float) -> Vector:
    return tuple(value * factor for value in vector)


# A gradient of a weight is added to float32: read and written.
ACCUMULATE = 8


class KernelTime(NamedTuple):
    """One kernel for all tokens of a micro-batch and whole weights, in seconds."""

    kernel_class: int
    """Its position in CLASSES."""
    computing: float
    moving: float
    """Of activations."""
    weights: float
    routed: bool
    of_whole: bool
    """Ranks that share sequences all run it for the whole of them."""
    of_rows: bool = False
    """It moves rows of experts as wide as tokens are."""
    idle: float = 0.0
    """That the GPU has nothing to do behind it, because the host reads what it made."""

    @property
    def of_experts(self) -> bool:
        """How many ranks share the experts tells its time."""
        return self.routed or self.of_rows


class Kernels(NamedTuple):
    """Of one part."""

    forward: tuple[tuple[KernelTime, Asking], ...]
    """With what asks for each of them once more in backward."""
    input_gradient: tuple[KernelTime, ...]
    weight_gradient: tuple[KernelTime, ...]
    recast: tuple[tuple[KernelTime, Asking], ...]
    """Of backward alone, and what asks for them."""

    def parted(self) -> tuple[Kernels, Kernels]:
        """Those that take as long however the experts are shared, and the others."""
        alike, divided = (
            Kernels(
                tuple(pair for pair in self.forward if pair[0].of_experts is which),
                tuple(one for one in self.input_gradient if one.of_experts is which),
                tuple(one for one in self.weight_gradient if one.of_experts is which),
                tuple(pair for pair in self.recast if pair[0].of_experts is which),
            )
            for which in (False, True)
        )
        return alike, divided


def seconds(ops: tuple[OpCost, ...], hardware: Hardware, batch: int, length: int, share: Share) -> Seconds:
    """A part on one rank: `batch` sequences of `length` tokens."""
    part = kernels(ops, hardware, batch, length)
    return launched(on_rank(part, hardware, share), part, hardware)


def on_rank(part: Kernels, hardware: Hardware, share: Share) -> Seconds:
    """Every kernel as long as what limits it."""
    floor = hardware.calibration.kernel_floor.value
    tokens, dense, experts, slices = share

    def time(kernel: KernelTime) -> float:
        _, computing, moving, weights, routed, of_whole, of_rows, idle = kernel
        among = dense if of_whole else tokens
        moved = moving * (slices if of_rows else 1) / among + weights / (experts if routed else dense)
        return max(computing / among, moved, floor) + idle

    forward, data, weight = ([0.0] * len(CLASSES) for _ in range(3))
    again: dict[Asking, list[float]] = {}
    for kernel, asking in part.forward:
        took = time(kernel)
        forward[kernel.kernel_class] += took
        if asking.by:
            again.setdefault(asking, [0.0] * len(CLASSES))[kernel.kernel_class] += took
    for kernel, asking in part.recast:
        again.setdefault(asking, [0.0] * len(CLASSES))[kernel.kernel_class] += time(kernel)
    for times, some in ((data, part.input_gradient), (weight, part.weight_gradient)):
        for kernel in some:
            times[kernel.kernel_class] += time(kernel)
    return Seconds(tuple(forward), tuple(data), tuple(weight), _sorted(again))


def both(one: Seconds, other: Seconds) -> Seconds:
    """Of two sets of kernels."""
    again = {asking: list(times) for asking, times in one.again}
    for asking, times in other.again:
        again[asking] = [a + b for a, b in zip(again.get(asking, NOTHING), times, strict=True)]
    forward, data, weight = (tuple(map(operator.add, a, b)) for a, b in zip(one[:3], other[:3], strict=True))
    return Seconds(forward, data, weight, _sorted(again))


def _sorted(again: dict[Asking, list[float]]) -> tuple[tuple[Asking, Vector], ...]:
    return tuple((asking, tuple(times)) for asking, times in sorted(again.items()))


def launched(times: Seconds, part: Kernels, hardware: Hardware) -> Seconds:
    """The host's launches bound each pass of a whole part from below."""
    return times._replace(
        forward=_launched(times.forward, len(part.forward), hardware),
        input_gradient=_launched(times.input_gradient, len(part.input_gradient), hardware),
        weight_gradient=_launched(times.weight_gradient, len(part.weight_gradient), hardware),
    )


def _launched(times: Vector, kernels: int, hardware: Hardware) -> Vector:
    """Where the host is slower than the GPU, the GPU waits: told as time of memory-bound ops, the smallest."""
    wait = kernels * hardware.calibration.launch.value - sum(times)
    if wait <= 0:
        return times
    place = POSITION["memory"]
    return (*times[:place], times[place] + wait, *times[place + 1 :])


def kernels(ops: tuple[OpCost, ...], hardware: Hardware, batch: int, length: int) -> Kernels:
    forward, data, weight, recast = [], [], [], []
    for op in ops:
        passes = _passes(op, hardware, batch, length)
        forward += [(kernel, Asking(op.recompute)) for kernel in passes[0]]
        data += passes[1]
        weight += passes[2]
        moved = op.casts.again.at(batch, length)
        if op.recast and moved:
            kernel = _kernel(hardware, hardware.calibration.forward, "cast", moved=moved, of_whole=op.of_whole)
            recast.append((kernel, Asking(op.recast, op.unless)))
    return Kernels(tuple(forward), tuple(data), tuple(weight), tuple(recast))


def _passes(
    op: OpCost, hardware: Hardware, batch: int, length: int
) -> tuple[list[KernelTime], list[KernelTime], list[KernelTime]]:
    """Kernels of forward, of the input's gradient and of the weights'."""
    calibration = hardware.calibration
    flops, backward = op.flops.at(batch, length), op.backward_flops.at(batch, length)
    moved, moved_back = op.forward_bytes.at(batch, length), op.backward_bytes.at(batch, length)

    def kernel(of: Efficiencies, flops: float = 0.0, moved: float = 0.0, weights: float = 0.0) -> KernelTime:
        found = _kernel(hardware, of, op.kernel_class, flops, moved, weights, op.routed, op.of_whole)
        return found._replace(of_rows=op.of_rows)

    def casts(of: Efficiencies, moved: Terms, weights: float = 0.0) -> list[KernelTime]:
        amounts = [(moved.at(batch, length), 0.0), (0.0, weights)]
        return [_kernel(hardware, of, "cast", 0.0, *some, op.routed, op.of_whole) for some in amounts if any(some)]

    if op.kernel_class == "memory":
        back = [kernel(calibration.input_gradient, moved=moved_back)] if moved_back else []
        idle = calibration.host_wait.value if op.waits else 0.0
        return [kernel(calibration.forward, moved=moved)._replace(idle=idle)], back, []
    if op.kernel_class == "attention":
        again = calibration.attention_backward_products.value
        back = [kernel(calibration.input_gradient, backward * again, moved_back)]
        return [kernel(calibration.forward, flops, moved)], back, []
    read = op.weights * op.weight_bytes
    forward = [kernel(calibration.forward, flops, moved, read)]
    data = [kernel(calibration.input_gradient, backward / 2, moved, read)]
    added = op.weights * ACCUMULATE
    of = calibration.weight_gradient
    weight = [_kernel(hardware, of, op.weight_class, backward / 2, moved, added, op.routed, op.of_whole)]
    return (
        forward + casts(calibration.forward, op.casts.forward, op.casts.weights[0]),
        data + casts(calibration.input_gradient, op.casts.input_gradient, op.casts.weights[1]),
        weight + casts(of, op.casts.weight_gradient),
    )


Efficiencies = dict[KernelClass, Figure]


def _kernel(
    hardware: Hardware,
    of: Efficiencies,
    kernel_class: KernelClass,
    flops: float = 0.0,
    moved: float = 0.0,
    weights: float = 0.0,
    routed: bool = False,
    of_whole: bool = False,
) -> KernelTime:
    """`moved` and `weights` in bytes."""
    computing, bandwidth = hardware.rates(of, kernel_class)
    return KernelTime(
        POSITION[kernel_class],
        flops / computing if flops else 0.0,
        moved / bandwidth,
        weights / bandwidth,
        routed,
        of_whole,
    )
