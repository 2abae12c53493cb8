"""One sitting at a machine: every kernel checked at odd sizes, then measured, from where a file leaves off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.run import Result, Subject, checked, each_case, timed


@dataclass(frozen=True)
class Sitting:
    package: str
    """Its name: kernels of several may have cases of one name."""
    device: str
    tokens: Sequence[int]
    """Rows of the inputs that are timed."""
    odd: Sequence[int] = ()
    """Rows at which results are only checked."""
    compiled: bool = True
    output: Path | None = None
    """Results are appended, one JSON object a line; what stands there of this machine and is right is not run again."""


def run(
    kernels: Sequence[Subject], machine: Machine, sitting: Sitting, say: Callable[[str], None] = lambda line: None
) -> Iterator[Result]:
    """Results as they come; those of earlier sittings are not among them."""
    known = _known(sitting, machine)
    with sitting.output.open("a", encoding="utf-8") if sitting.output else nullcontext() as file:
        for phase, tokens in (*(("check", odd) for odd in sitting.odd), *(("time", count) for count in sitting.tokens)):
            for kernel in kernels:
                say(f"{phase} {kernel.name}, {tokens} tokens")
                done = {case for known_phase, name, case in known if (known_phase, name) == (phase, kernel.name)}
                for result in each_case(kernel, tokens, sitting.device, done, _work(phase, kernel, machine, sitting)):
                    if file is not None:
                        made = {"date": date.today().isoformat(), "package": sitting.package, "phase": phase}
                        record = {**made, **asdict(machine), **asdict(result)}
                        file.write(json.dumps(record) + "\n")
                        file.flush()
                    yield result


def _work(phase: str, kernel: Subject, machine: Machine, sitting: Sitting) -> Callable[..., Result]:
    if phase == "check":
        return lambda case: checked(kernel.name, case)
    return lambda case: timed(kernel.name, case, machine, sitting.device, sitting.compiled)


def _known(sitting: Sitting, machine: Machine) -> set[tuple[str, str, str]]:
    """Phase, kernel and case of what was found right on such a machine with these versions."""
    if sitting.output is None or not sitting.output.exists():
        return set()
    ours = (sitting.package, machine.device, machine.torch, machine.triton)
    rows = [json.loads(line) for line in sitting.output.read_text(encoding="utf-8").splitlines()]
    mine = [row for row in rows if tuple(row.get(key) for key in ("package", "device", "torch", "triton")) == ours]
    return {(row["phase"], row["kernel"], row["case"]) for row in mine if row["correct"]}
