"""Every kernel of an emitted package on one device: first whether it is right, then how fast."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.clock import seconds
from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.sizes import SIZES

_numbers = itertools.count()


@dataclass(frozen=True)
class Result:
    """One case. Times in seconds; None where there is nothing of the kind, or where it failed."""

    kernel: str
    case: str
    difference: float
    """calc_diff from the reference: half the square of the relative error."""
    correct: bool
    time: float
    bytes_per_second: float
    flops_per_second: float
    of_ceiling: float
    """Share of the machine's own measured ceiling, of whichever bounds the case."""
    reference_time: float
    compiled_time: float | None
    """torch.compile of the reference."""
    library_time: float | None
    """PyTorch's own operator."""


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


def subjects(folder: Path) -> dict[str, Subject]:
    """The kernels of a package that there are cases for, by name."""
    package = _imported(folder)
    names = sorted(path.stem for path in (folder / "kernels").glob("[!_]*.py"))
    return {name: _subject(package, name) for name in names if importlib.util.find_spec(f"{CASES}.{name}") is not None}


def subject(folder: Path, name: str) -> Subject:
    return _subject(_imported(folder), name)


def _subject(package: str, name: str) -> Subject:
    module = importlib.import_module(f"{package}.kernels.{name}")
    dims = vars(importlib.import_module(f"{package}.dims"))
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


def measure(subject: Subject, tokens: int, machine: Machine, device: str, compiled: bool) -> Iterator[Result]:
    """The results of one kernel, as they come."""
    torch.manual_seed(0)
    with torch.no_grad():
        for case in subject.cases(tokens, device):
            yield _measure_case(subject.name, case, machine, device, compiled)


def _measure_case(name: str, case: Case, machine: Machine, device: str, compiled: bool) -> Result:
    error = difference(case.run(), case.reference())
    time = seconds(case.run, device)
    floor = max(case.bytes / machine.bytes_per_second, case.flops / machine.flops_per_second)
    return Result(
        name,
        case.name,
        error,
        error <= case.bound,
        time,
        case.bytes / time,
        case.flops / time,
        floor / time,
        seconds(case.reference, device),
        _compiled_seconds(case.reference, device) if compiled else None,
        seconds(case.library, device) if case.library else None,
    )


def _compiled_seconds(reference: Callable[[], object], device: str) -> float | None:
    """A reference that the compiler cannot take is no comparison, not a failure of ours."""
    torch.compiler.reset()
    try:
        return seconds(torch.compile(reference), device)
    except Exception:
        return None


def difference(actual: object, expected: object) -> float:
    """The largest calc_diff among all tensors that come back."""
    pairs = list(zip(_tensors(actual), _tensors(expected), strict=True))
    return max(calc_diff(a, e) for a, e in pairs)


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple | list), type(result)
    return [tensor for tensor in result if isinstance(tensor, Tensor)]


def calc_diff(actual: Tensor, expected: Tensor) -> float:
    """1 - 2 <x, y> / (|x|^2 + |y|^2) in float64; infinite where something is not finite."""
    x, y = actual.double().flatten(), expected.double().flatten()
    if not bool(x.isfinite().all()):
        return float("inf")
    norm = (x @ x + y @ y).item()
    return 0.0 if norm == 0 else max(0.0, 1 - 2 * (x @ y).item() / norm)
