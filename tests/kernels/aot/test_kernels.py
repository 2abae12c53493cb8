"""Every kernel at the real sizes of its record, compiled for every architecture that takes it."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest
from kernels.ahead import Compiled, compile_launches
from kernels.budgets import check_budget
from kernels.lab import dims, kernels, spec_with

from dsc.compiler.bench.sizes import SIZES
from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.registry import KERNELS
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.kernels.tuning import NoTile
from dsc.spec.model import ModelSpec

CASES = "dsc.compiler.bench.cases"
LAUNCHED = [kernel for kernel in KERNELS.values() if find_spec(f"{CASES}.{kernel.name}")]
UNITS = {
    "bf16": {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA", "gfx950": "MFMA"},
    "fp8": {"sm_90": "QGMMA", "sm_100": "UTCQMMA", "gfx950": "MFMA"},
}
"""The matrix instructions of each architecture."""
SPILLS = {("mla_decode", "sm_100")}
"""Known and accepted with their bytes."""
SHARED = "grouped_gemm_tiles_kernel"
"""Of grouped_gemm.py, and launched by every kernel of experts."""
RELATED = ("sm_80", "sm_100", "gfx950")
"""Compiled by long runs alone: what breaks there mostly breaks on sm_90 and gfx942 too."""
NARROW = ("router_", "expert_dispatch_", "mla_attention_", "gqa_attention_", SHARED)
"""Functions without 128-bit loads on sm_90: narrow rows, and tiles that tensor descriptors load."""


def spec_of(probe: Probe) -> ModelSpec:
    return spec_with(probe.model, probe.changes)


def accepted(kernel: Kernel) -> list[str]:
    """Architectures that take it."""
    first = next(probe for probe in kernel.probes if probe.everywhere)
    return [arch for arch, target in TARGETS.items() if kernel.refusal(spec_of(first), target) is None]


ACCEPTED = {kernel.name: accepted(kernel) for kernel in LAUNCHED}
TAKEN = [(name, arch) for name, archs in ACCEPTED.items() for arch in archs]
REFUSED = [(name, arch) for name, archs in ACCEPTED.items() for arch in TARGETS if arch not in archs]


def probes(kernel: Kernel, arch: str) -> Iterator[tuple[Probe, ModuleType]]:
    for probe in kernel.probes:
        if probe.everywhere or arch == "sm_90":
            yield probe, kernels((kernel.name,), probe.model, arch, **keys(probe))[0]


def keys(probe: Probe) -> dict[str, object]:
    return {key.replace(".", "__"): value for key, value in probe.changes.items()}


@pytest.mark.parametrize(
    ("name", "arch"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] in RELATED else []) for pair in TAKEN],
)
def test_launches(name: str, arch: str) -> None:
    kernel, measured = KERNELS[name], {}
    for probe, case, launches in compiled(kernel, arch):
        for launch in launches:
            check(kernel, launch, probe, arch)
        measured[case] = launches
    check_budget(name, arch, measured)


def compiled(kernel: Kernel, arch: str) -> Iterator[tuple[Probe, str, list[Compiled]]]:
    """Every case of every probe: its name in the budgets, and its launches."""
    cases = import_module(f"{CASES}.{kernel.name}").cases
    for probe, module in probes(kernel, arch):
        sizes = SIZES[kernel.name](dims(probe.model, **keys(probe)))
        for case in cases(module, sizes, probe.tokens, "cpu"):
            if re.search(probe.only, case.name):
                yield probe, f"{probe.label} {case.name}", compile_launches(module, case.run, arch)


def check(kernel: Kernel, launch: Compiled, probe: Probe, arch: str) -> None:
    """What has to hold whatever was accepted."""
    assert launch.function.startswith((f"{kernel.name}_", SHARED)) and launch.function.endswith("_kernel")
    assert launch.shared <= TARGETS[arch].shared_memory
    assert launch.spilled == 0 or (kernel.name, arch) in SPILLS
    assert launch.wide_loads > 0 or arch != "sm_90" or launch.function.startswith(NARROW)
    own = [one for one in kernel.launches if launch.function == f"{kernel.name}_{one.name}_kernel"]
    for one in own:
        assert launch.matrix == ((UNITS[one.product][arch],) if one.product else ())
    for one in own or shared_by_several(kernel, launch):
        stated = one.shared_memory(launch.arguments, spec_of(probe), TARGETS[arch])
        assert launch.shared <= stated or stated == 0, "the bytes by which the compiler refuses tiles"


def shared_by_several(kernel: Kernel, launch: Compiled) -> tuple[Launch, ...]:
    """Launches of a function that is named after none of them."""
    return kernel.launches if launch.arguments.keys() >= {"BLOCK", "ROWS"} else ()


@pytest.mark.parametrize(("name", "arch"), REFUSED)
def test_what_is_refused_has_no_tiles(name: str, arch: str) -> None:
    first, *_ = KERNELS[name].probes
    with pytest.raises(NoTile):
        kernels((name,), first.model, arch, **keys(first))


def test_functions_have_one_name_each_in_a_package() -> None:
    """A profiler shows the name of the function alone."""
    names = []
    for kernel in LAUNCHED:
        first, *_ = kernel.probes
        (module,) = kernels((kernel.name,), first.model, "sm_90", **keys(first))
        names += [name for name, one in vars(module).items() if name.endswith("_kernel") and hasattr(one, "run")]
    assert len(names) == len(set(names)) > 20
