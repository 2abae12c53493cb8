"""How long a step of prefill or decode takes, by a roofline over the graph that the package serves with.

Every op takes as long as what limits it: its FLOPs, or the bytes of weights, cache and activations that it reads and
writes. Nothing is hidden: the package runs one op after the other. Efficiencies are those of training (calibration.py);
no measurement of serving took part, so every published deployment is a test of this model. Such deployments exchange
rows as DeepEP does: they are told with `others`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsc.compiler.planner.machine.calibration import Figure
from dsc.compiler.planner.machine.collectives import (
    BF16,
    FP8,
    Group,
    all_reduce,
    direct_all_to_all,
    expert_all_to_all,
    rows_all_to_all,
)
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.serving.memory import Serving, ServingMemory
from dsc.compiler.planner.serving.served import Phase, Served
from dsc.compiler.planner.serving.work import Demand, Load, Work, work_of
from dsc.compiler.planner.time.lines import TimeLine
from dsc.compiler.planner.time.traffic import experts_of

ATTENTION, PRODUCTS, EXPERTS, OTHER = "attention", "products", "routed experts", "memory-bound ops"
EXCHANGE, TENSOR, LAUNCHES = "expert all-to-all", "tensor parallelism", "waiting for launches"
HOST = "host waits for counts"
IMBALANCE, DRAFT = "imbalance of experts", "guesses of multi-token prediction"
COMPUTE = (ATTENTION, PRODUCTS, EXPERTS, OTHER)
BYTES = {"weights": "weights", "context": "keys and values", "activations": "activations"}

UNMEASURED = Figure(0.25, "assumed", "no step of serving was measured; on top of the machine's own uncertainty")


@dataclass(frozen=True)
class Speed:
    """Of a deployment."""

    phase: Phase
    seconds: float
    """Of one step."""
    lines: tuple[TimeLine, ...]
    """They add up to the step."""
    tokens: float
    """That a step brings each of its sequences forward."""
    per_gpu: float
    """Tokens a second of one GPU: of the prompt in prefill, new ones in decode."""
    gpus: int
    uncertainty: float
    """Relative, either way."""

    @property
    def of_all(self) -> float:
        """Tokens a second of the whole deployment."""
        return self.per_gpu * self.gpus

    @property
    def waited(self) -> float:
        """Seconds to the first token in prefill, without a queue; in decode for each token of a sequence."""
        return self.seconds if self.phase == "prefill" else self.seconds / self.tokens

    def dollars(self, price: float) -> float:
        """For a million tokens, at so many dollars for an hour of a GPU."""
        return price / 3600 / self.per_gpu * 1e6


@dataclass(frozen=True)
class Guesses:
    """Multi-token prediction as a draft: each module guesses one more token, and so many of the guesses are right."""

    modules: int = 0
    acceptance: float = 0.0
    """Of the first guess; of the next as much again."""

    @property
    def tokens(self) -> float:
        """Of one step: the model's own, and guesses up to the first wrong one."""
        return sum(self.acceptance**count for count in range(self.modules + 1))


class ServingCost:
    """Of one model on one machine."""

    def __init__(self, memory: ServingMemory, hardware: Hardware, others: bool = False) -> None:
        self._memory = memory
        self._hardware = hardware
        self._others = others
        self._experts = experts_of(memory.spec)
        self._codes = "experts" in memory.spec.precision.fp8_products()
        self._known: dict[tuple[Served, bool], tuple[Work, ...]] = {}

    def _work(self, serving: Serving, draft: bool = False) -> tuple[Work, ...]:
        served = self._memory.served(serving)
        if (served, draft) not in self._known:
            self._known[served, draft] = work_of(served, served.draft if draft else served.steps, self._memory)
        return self._known[served, draft]

    def speed(self, load: Load, guesses: Guesses, imbalance: float | None = None) -> Speed:
        """Of a step in which every sequence has its tokens. `imbalance`: the busiest GPU's load over the mean, where
        loads were measured."""
        lines = tuple(line for line in self._lines(load, guesses, imbalance) if line.seconds)
        seconds = sum(line.seconds for line in lines)
        tokens = guesses.tokens if load.request.phase == "decode" else float(load.request.new_tokens)
        per_gpu = load.sequences * tokens / seconds / load.serving.tp
        uncertainty = self._hardware.calibration.uncertainty.value + UNMEASURED.value
        return Speed(load.request.phase, seconds, lines, tokens, per_gpu, load.serving.gpus, uncertainty)

    def _lines(self, load: Load, guesses: Guesses, imbalance: float | None) -> Iterator[TimeLine]:
        main = list(self._run(self._work(load.serving), load))
        yield from main
        yield self._imbalance(load, main, imbalance)
        if guesses.modules and load.request.phase == "decode":
            seconds = sum(line.seconds for line in self._run(self._work(load.serving, draft=True), load))
            source = "what the module, its layer and the head take for the tokens of the step"
            yield TimeLine(DRAFT, seconds, "derived", source)

    def _run(self, work: tuple[Work, ...], load: Load) -> Iterator[TimeLine]:
        """Of the ops and of what goes between GPUs, with balanced experts."""
        timed = [_timed(op, load, self._memory, self._hardware) for op in work if not op.sent(load)]
        lines = [_line(name, [op for op in timed if op.name == name]) for name in COMPUTE]
        links, group = self._hardware.cluster.links_source, load.serving
        yield from lines
        sent = self._exchanges(work, load)
        yield sent
        added = sum(op.count for op in work if op.adds_up(group)) * self._added_up(load) + self._joined(work, load)
        yield TimeLine(
            TENSOR, added, "derived", f"what tp {group.tp} GPUs have of a sum or of all tokens, joined; {links}"
        )
        waits, wait = sum(op.count for op in work if op.step.node.op.waits), self._hardware.calibration.host_wait
        yield TimeLine(HOST, waits * wait.value, wait.provenance, f"{waits:,} times; {wait.source}")
        launch, launches = self._hardware.calibration.launch, sum(op.launches for op in timed)
        idle = launches * launch.value - sum(line.seconds for line in lines) - sent.seconds - added
        yield TimeLine(LAUNCHES, max(0.0, idle), launch.provenance, f"{launches:,} launches; {launch.source}")

    def _exchanges(self, work: tuple[Work, ...], load: Load) -> TimeLine:
        """Rows to the ranks of their experts and back."""
        links, group, phase = self._hardware.cluster.links_source, load.serving, load.request.phase
        if not group.shares_experts:
            return TimeLine(EXCHANGE, 0.0, "derived", "")
        if self._others:
            layers = {op.step.path: op.count for op in work if op.routed}  # whose experts may be several products
            seconds = sum(layers.values()) * self._as_others(load)
            sent = "each token to each of its experts" if phase == "decode" else "each token once to a domain"
        else:
            across, hardware = Group(group.ep or group.gpus), self._hardware
            counted = [(op.count, op.sent(load)) for op in work]
            seconds = sum(n * rows_all_to_all(size, across, hardware).seconds(hardware) for n, size in counted if size)
            sent = "each token to each of its experts, and how many there are"
        return TimeLine(EXCHANGE, seconds, "derived", f"{sent}, ep {group.ep}; {links}")

    def _as_others(self, load: Load) -> float:
        """Dispatch and combine of a layer, in FP8 there where the experts' products are."""
        assert self._experts is not None
        group = Group(load.serving.ep or load.serving.gpus)
        across = direct_all_to_all if load.request.phase == "decode" else expert_all_to_all
        rows, hidden = load.tokens / load.serving.tp, self._memory.spec.hidden_size
        return sum(
            across(rows, hidden, width, self._experts, group, self._hardware).seconds(self._hardware)
            for width in (FP8 if self._codes else BF16, BF16)
        )

    def _added_up(self, load: Load) -> float:
        total = float(load.tokens * self._memory.spec.hidden_size * BF16)
        return all_reduce(total, Group(load.serving.tp), self._hardware)

    def _joined(self, work: tuple[Work, ...], load: Load) -> float:
        """What the package gathers besides: tokens behind each mixture and logits, each half of an all-reduce; the
        embedding's parts are added up."""
        if load.serving.tp == 1 or self._others:
            return 0.0
        mixtures = sum({op.step.path: op.count for op in work if op.routed}.values())
        rows = load.sequences * (load.request.new_tokens if load.request.phase == "decode" else 1)
        logits = all_reduce(float(rows * self._memory.spec.vocab_size * BF16), Group(load.serving.tp), self._hardware)
        return (mixtures / 2 + 1) * self._added_up(load) + logits / 2

    def _imbalance(self, load: Load, lines: list[TimeLine], measured: float | None) -> TimeLine:
        """What all GPUs wait for the busiest, where experts are shared."""
        if not load.serving.shares_experts:
            return TimeLine(IMBALANCE, 0.0, "derived", "")
        if measured is not None:
            waiting = sum(line.seconds for line in lines if line.name in (EXPERTS, EXCHANGE))
            return TimeLine(IMBALANCE, (measured - 1) * waiting, "measured", f"loads: {measured:.2f} times the mean")
        layer = self._hardware.calibration.imbalance
        seconds = (layer.value - 1) * sum(line.seconds for line in lines if line.name not in (LAUNCHES, HOST))
        return TimeLine(IMBALANCE, seconds, layer.provenance, layer.source)


class Timed(NamedTuple):
    """An op on one GPU, as often as it runs."""

    name: str
    """Of its line."""
    seconds: float
    launches: int
    demand: Demand
    limit: str
    figure: Figure
    """The efficiency of what limits it."""


def _timed(work: Work, load: Load, memory: ServingMemory, hardware: Hardware) -> Timed:
    efficiencies, kernel_class = hardware.calibration.forward, work.kernel_class
    demand, cast = work.demand(load, memory), work.cast(load)
    computing, moving = hardware.rates(efficiencies, kernel_class)
    floor = hardware.calibration.kernel_floor
    seconds, limit, figure = max(
        (demand.flops / computing if demand.flops else 0.0, "products", efficiencies[kernel_class]),
        (demand.bytes / moving, "memory", efficiencies["memory"]),
        (floor.value, "the least time of a kernel", floor),
        key=lambda limit: limit[0],
    )
    if cast:
        seconds += hardware.kernel_seconds(efficiencies, "cast", 0.0, cast)
    count, launches = work.count, 2 if cast else 1
    return Timed(_name(work), count * seconds, count * launches, demand.times(count), limit, figure)


def _name(work: Work) -> str:
    if work.attends:
        return ATTENTION
    return EXPERTS if work.routed else PRODUCTS if work.multiplies else OTHER


def _line(name: str, timed: Sequence[Timed]) -> TimeLine:
    """What its ops ask for, and how well what limits most of them is used."""
    seconds = sum(op.seconds for op in timed)
    if not timed:
        return TimeLine(name, 0.0, "derived", "")
    most = max(timed, key=lambda op: op.seconds)
    amounts = {text: sum(getattr(op.demand, field) for op in timed) for field, text in BYTES.items()}
    asked = [f"{amount / 2**30:,.3g} GiB of {text}" for text, amount in amounts.items() if amount]
    if flops := sum(op.demand.flops for op in timed):
        asked.append(f"{flops / 1e12:,.3g} TFLOP")
    limited = sum(op.seconds for op in timed if op.limit == most.limit) / seconds
    source = f"{', '.join(asked)}; {limited:.0%} limited by {most.limit}; {most.figure.source}"
    return TimeLine(name, seconds, most.figure.provenance, source)
