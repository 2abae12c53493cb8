"""Tries the tiles of a declared grid on this GPU and proposes the faster ones as rows of the tuning table."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.run import Subject, difference, subject
from dsc.compiler.driver import Program
from dsc.compiler.emit.formatting import format_files
from dsc.compiler.emit.kernels import kernel_file
from dsc.compiler.emit.package import file_printer
from dsc.compiler.kernels import tuning
from dsc.compiler.kernels.tuning import Numbers, TileTooLarge

Clock = Callable[[Callable[[], object]], float]
"""Seconds of one run."""


@dataclass(frozen=True)
class Trial:
    """A tile of one launch, and the times of its kernel's cases with it."""

    kernel: str
    launch: str
    tile: Numbers
    dims: Numbers
    """By which the launch chose its tile."""
    times: dict[str, float]
    """By case; empty where a result was wrong or the tile could not be compiled."""
    note: str = ""
    """Why there are none."""


@dataclass(frozen=True)
class Proposal:
    """The fastest tile of a launch for one case, where it beats the table's."""

    kernel: str
    launch: str
    case: str
    tile: Numbers
    dims: Numbers
    before: float
    after: float

    def row(self, arch: str, origin: str) -> str:
        """In the table's format."""
        lines = [f"# {self.case}: {self.after * 1e6:.1f} us, {self.before / self.after:.2f}x the table's tile"]
        lines += [f"[[{self.launch}]]", f'arch = ["{arch}"]']
        if self.dims:
            lines.append(f"dims = {_inline(self.dims)}")
        return "\n".join([*lines, f"tile = {_inline(self.tile)}", f'origin = "{origin}"'])


def tiles_to_try(kernel: str, launch: str, known: Numbers) -> tuple[Numbers, ...]:
    """Every combination of the grid that `[grid.<launch>]` of the kernel's table declares, around the known tile."""
    grid = tuning.grid(kernel).get(launch, {})
    tiles = ({**known, **dict(zip(grid, choice, strict=True))} for choice in product(*grid.values()))
    return tuple(tile for tile in tiles if tile != known)


def trials(kernel: str, program: Program, folder: Path, tokens: int, device: str, clock: Clock) -> Iterator[Trial]:
    """The table's own tile of each launch first, then those of its grid. One launch changes at a time."""
    for launch, asked in tuning.asked(kernel, lambda: _print(kernel, program)).items():
        for tile in (asked.tile, *tiles_to_try(kernel, launch, asked.tile)):
            times, note = _try(kernel, launch, tile, program, folder, tokens, device, clock)
            yield Trial(kernel, launch, tile, asked.dims, times, note)


def proposals(tried: list[Trial]) -> tuple[Proposal, ...]:
    """By launch and case, the fastest tile that is faster than the table's, which is the first tried."""
    found = []
    for kernel, launch in dict.fromkeys((trial.kernel, trial.launch) for trial in tried):
        first, *others = (trial for trial in tried if (trial.kernel, trial.launch) == (kernel, launch))
        for case, before in first.times.items():
            rivals = [(trial.times[case], index) for index, trial in enumerate(others) if case in trial.times]
            if rivals and min(rivals)[0] < before:
                after, index = min(rivals)
                found.append(Proposal(kernel, launch, case, others[index].tile, first.dims, before, after))
    return tuple(found)


def _try(
    kernel: str, launch: str, tile: Numbers, program: Program, folder: Path, tokens: int, device: str, clock: Clock
) -> tuple[dict[str, float], str]:
    """The times by case, or why there are none."""
    try:
        with tuning.trial(kernel, launch, tile):
            text = _print(kernel, program)
    except TileTooLarge as error:
        return {}, str(error)
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / "package"
        shutil.copytree(folder, copy)
        (copy / "kernels" / f"{kernel}.py").write_text(text, encoding="utf-8")
        try:
            return _times(subject(copy, kernel), tokens, device, clock), ""
        except Exception as error:  # Triton refuses tiles in many ways
            return {}, f"{type(error).__name__}: {error}".splitlines()[0]


def _times(subject: Subject, tokens: int, device: str, clock: Clock) -> dict[str, float]:
    times = {}
    for case in subject.cases(tokens, device):
        _check(case)
        times[case.name] = clock(case.run)
    return times


def _check(case: Case) -> None:
    found = difference(case.run(), case.reference())
    if not found <= case.bound:
        raise ValueError(f"{case.name} is wrong by {found:.0e}")


def _print(kernel: str, program: Program) -> str:
    assert program.target is not None
    printer = file_printer(program.spec, program.training)
    file = kernel_file(printer, kernel, program.training, program.target)
    return format_files({file.path: file.text})[file.path]


def _inline(numbers: Numbers) -> str:
    return "{" + ", ".join(f"{name} = {number}" for name, number in numbers.items()) + "}"
