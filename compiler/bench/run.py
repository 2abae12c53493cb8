"""Every kernel of an emitted package on one device: first whether it is right, then how fast."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.clock import seconds
from dsc.compiler.bench.compare import compare, equal
from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.sizes import SIZES

_numbers = itertools.count()


@dataclass(frozen=True)
class Result:
    """One case. Times in seconds; None where there is nothing of the kind, or where it failed."""

    kernel: str
    case: str
    difference: float | None = None
    """calc_diff from the reference: half the square of the relative error."""
    worst_row: tuple[int, float] | None = None
    """The row of the results that is furthest off, and its relative error."""
    correct: bool = False
    """Within the bound of its case, and to the bit the same in every repetition."""
    time: float | None = None
    """None where it was checked and not timed."""
    bytes_per_second: float | None = None
    flops_per_second: float | None = None
    of_ceiling: float | None = None
    """Share of the machine's own measured ceiling, of whichever bounds the case."""
    reference_time: float | None = None
    compiled_time: float | None = None
    """torch.compile of the reference."""
    library_time: float | None = None
    """PyTorch's own operator."""
    error: str = ""
    """What was raised instead."""


@dataclass(frozen=True)
class Subject:
    """A kernel of a package, and the sizes of the package's model at which it is measured."""

    name: str
    module: ModuleType
    sizes: tuple[Any, ...]

    def cases(self, tokens: int, device: str) -> Iterator[Case]:
        cases: Iterator[Case] = importlib.import_module(f"{CASES}.{self.name}").cases(
            self.module, self.sizes, tokens, device
        )
        return cases


CASES = "dsc.compiler.bench.cases"
GROUPED = ("grouped_gemm", "grouped_gemm_backward", "fp8_grouped_gemm", "fp8_grouped_gemm_backward")
SHARED_OUT = ("expert_dispatch", *GROUPED)
"""Kernels of experts, of which a GPU may hold only some."""
REPETITIONS = 3


def subjects(folder: Path, experts: int | None = None) -> dict[str, Subject]:
    """The kernels of a package that there are cases for, by name; `experts` of them on this GPU, where fewer."""
    package = _imported(folder)
    names = sorted(path.stem for path in (folder / "kernels").glob("[!_]*.py"))
    return {name: _subject(package, name, experts) for name in names if name in SIZES}


def subject(folder: Path, name: str) -> Subject:
    return _subject(_imported(folder), name)


def _subject(package: str, name: str, experts: int | None = None) -> Subject:
    module = importlib.import_module(f"{package}.kernels.{name}")
    dims = dict(vars(importlib.import_module(f"{package}.dims")))
    if experts is not None and name in SHARED_OUT:
        dims |= {"NUM_EXPERTS": experts, "TOP_K": min(experts, dims["TOP_K"])}
    return Subject(name, module, SIZES[name](dims))


def _imported(folder: Path) -> str:
    """The package in a folder, under a name that no other has."""
    name = f"dsc_benched_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return name


def each_case(
    subject: Subject, tokens: int, device: str, known: Container[str], work: Callable[[Case], Result]
) -> Iterator[Result]:
    """What is made of the cases of one kernel that are not known yet, as they come. One that raises is a result too."""
    torch.manual_seed(0)
    cases = subject.cases(tokens, device)
    while True:
        name = f"inputs of {tokens} tokens"
        try:
            case = next(cases, None)
            if case is None:
                return
            if case.name in known:
                continue
            name = case.name
            with torch.no_grad():
                yield work(case)
        except Exception as error:
            yield Result(subject.name, name, error=f"{type(error).__name__}: {error}"[:300])
            if name.startswith("inputs"):
                return
        case = None
        _free(device)


def checked(name: str, case: Case) -> Result:
    """Whether a case is right: against its reference, and the same bits whenever it runs."""
    first = case.run()
    repeats = all(equal(first, case.run()) for _ in range(REPETITIONS - 1))
    found = compare(first, case.reference())
    correct = found.difference <= case.bound and repeats
    return Result(name, case.name, found.difference, (found.row, found.worst), correct)


def timed(name: str, case: Case, machine: Machine, device: str, compiled: bool) -> Result:
    """The same, and how long it takes."""
    result = checked(name, case)
    time = seconds(case.run, device)
    floor = max(case.bytes / machine.bytes_per_second, case.flops / machine.ceiling(name))
    return replace(
        result,
        time=time,
        bytes_per_second=case.bytes / time,
        flops_per_second=case.flops / time,
        of_ceiling=floor / time,
        reference_time=seconds(case.reference, device),
        compiled_time=_other_seconds(lambda: _compiled(case.reference), device) if compiled else None,
        library_time=_other_seconds(lambda: case.library, device),
    )


def _other_seconds(make: Callable[[], Callable[[], object] | None], device: str) -> float | None:
    """What PyTorch cannot compile or has no operator for is no comparison, not a failure of ours."""
    try:
        run = make()
        return None if run is None else seconds(run, device)
    except Exception:
        return None


def _compiled(run: Callable[[], object]) -> Callable[[], object]:
    """Of this case alone: what earlier ones were specialised to counts as a limit of recompilations."""
    torch.compiler.reset()
    compiled: Callable[[], object] = torch.compile(run)
    return compiled


def _free(device: str) -> None:
    """A GPU's memory for the next case; collecting costs more than most cases take on a CPU, which has enough."""
    if device.startswith("cuda"):
        gc.collect()
        torch.cuda.empty_cache()


def difference(actual: object, expected: object) -> float:
    """The largest calc_diff among all tensors that come back."""
    return compare(actual, expected).difference
