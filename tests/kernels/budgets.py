"""Budgets of compiled kernels: what each launch took when it was last accepted, a file for each kernel.

They hold for the pinned Triton. After a change of a kernel, a tile or Triton, accept anew and read the diff:

    DSC_ACCEPT=1 pytest tests/kernels/aot/test_kernels.py [-k "rms_norm and sm_90"]

A launch is out of budget when it grew, and also when it shrank: a kernel that suddenly does less may have lost its
mask, its precision or a part of its work. Registers are allocated to warps in steps of eight, so a change within a step
is none; instruction counts may move by TOLERANCE.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.ahead import Compiled

FOLDER = Path(__file__).parent / "aot" / "budgets"
REGISTER_STEP = 8
TOLERANCE = 0.02

Launches = dict[str, list[Compiled]]
"""By case."""


def check_budget(kernel: str, arch: str, measured: Launches) -> None:
    """Every launch is as accepted; with DSC_ACCEPT=1 it is accepted."""
    file = FOLDER / f"{kernel}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    now = {case: [recorded(launch) for launch in launches] for case, launches in measured.items()}
    if os.environ.get("DSC_ACCEPT") == "1":
        file.write_text(json.dumps({**known, arch: now}, indent=1, sort_keys=True) + "\n")
        return
    assert known.get(arch, {}).keys() == now.keys(), f"{kernel}, {arch}: other cases than accepted"
    found = [
        f"{case}, {launch['function']}: {difference}"
        for case, launches in now.items()
        for launch, accepted in zip(launches, known[arch][case], strict=True)
        for difference in differences(launch, accepted)
    ]
    assert not found, "\n".join([f"{kernel} on {arch} is not as accepted (see {Path(__file__).name}):", *found])


def differences(launch: dict[str, Any], accepted: dict[str, Any]) -> list[str]:
    """What is out of budget."""
    changed = [key for key in accepted if not _same(key, launch[key], accepted[key])]
    return [f"{key} {launch[key]}, not {accepted[key]}" for key in changed]


def _same(key: str, now: Any, accepted: Any) -> bool:
    if key == "registers":
        return -(-now // REGISTER_STEP) == -(-accepted // REGISTER_STEP)
    if key == "instructions":
        return abs(now - accepted) <= TOLERANCE * accepted
    return bool(now == accepted)


def recorded(launch: Compiled) -> dict[str, Any]:
    """In the form of the file."""
    kept = {key: value for key, value in asdict(launch).items() if key != "arguments"}
    return {**kept, "matrix": list(launch.matrix)}
