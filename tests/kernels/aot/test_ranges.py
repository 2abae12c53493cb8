"""The IR of every launch at real widths and the most tokens: no address leaves its range, no product its precision."""

from importlib import import_module

import pytest
from kernels.aot.test_kernels import CASES, LAUNCHED, keys
from kernels.lab import dims, kernels, mutated
from kernels.ranges import Launched, escaping, launches, rounded

from dsc.compiler.bench.sizes import SIZES
from dsc.compiler.kernels.kernel import Kernel, Probe
from dsc.compiler.kernels.registry import KERNELS

PROBES = {
    f"{kernel.name}, {probe.label}": (kernel.name, probe)
    for kernel in LAUNCHED
    for probe in kernel.probes
    if probe.everywhere
}
"""Every form of a kernel once: how many tokens a probe has does not matter here."""
TOKENS = 1 << 19
ROWS = TOKENS * 8
LOADED = {
    "block_table_ptr": 1 << 24, "lengths_ptr": TOKENS, "ends_ptr": ROWS, "tiles_ptr": ROWS, "order_ptr": ROWS,
    "position_ptr": ROWS, "counts_ptr": ROWS, "starts_ptr": ROWS, "ids_ptr": 1 << 30,
    "labels_ptr": 1 << 30, "slots_ptr": 1 << 30,
    "positions_ptr": TOKENS,
}  # fmt: skip
"""The largest that stands in memory: tokens, rows of experts, pages; of indices that are checked, anything."""


def launched(kernel: Kernel, probe: Probe, tokens: int, fault: tuple[str, str] | None = None) -> list[Launched]:
    """Of the kernel's cases at a probe. No tensor has memory."""
    arguments = (probe.model, "sm_90")
    if fault:
        module = mutated(kernel.name, *fault, *arguments, **keys(probe))
    else:
        (module,) = kernels((kernel.name,), *arguments, **keys(probe))
    found: list[Launched] = []
    for case in import_module(f"{CASES}.{kernel.name}").cases(
        module, SIZES[kernel.name](dims(probe.model, **keys(probe))), tokens, "meta"
    ):
        found += launches(module, case.run)
    return found


def faults(launch: Launched) -> list[str]:
    return [*escaping(launch, LOADED), *rounded(launch)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "probe"), PROBES.values(), ids=PROBES)
def test_offsets_and_precision(name: str, probe: Probe) -> None:
    found = launched(KERNELS[name], probe, TOKENS)
    assert found
    assert [line for launch in found for line in faults(launch)] == []


FAULTS = {
    "rows of a product": (
        "expert_dispatch, deepseek-v3",
        (
            "tl.load(position_ptr + token * CHOSEN + k).to(tl.int64)\n        y +=",
            "tl.load(position_ptr + token * CHOSEN + k)\n        y +=",
        ),
    ),
    "rows of a sort": ("expert_dispatch, deepseek-v3", ("position_ptr + slot,", "position_ptr + slot * 4096,")),
    "ranks of a sort": ("expert_dispatch, deepseek-v3", ("rank += tl.sum(", "rank += (1 << 24) * tl.sum(")),
    "experts": (
        "grouped_gemm, deepseek-v3",
        ("expert = tl.load(tiles_ptr + pid_m).to(tl.int64)", "expert = tl.load(tiles_ptr + pid_m)"),
    ),
    "keys of a document": (
        "mla_attention, deepseek-v3 documents=apart",
        ("begin + from_n, tl.minimum", "begin + from_n * 4096, tl.minimum"),
    ),
    "precision": (
        "mla_decode, deepseek-v3",
        (
            'scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")',
            "scores = tl.dot(q_latent, tl.trans(latent))",
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    (name, probe), replacement = PROBES[FAULTS[fault][0]], FAULTS[fault][1]
    assert any(faults(launch) for launch in launched(KERNELS[name], probe, TOKENS, replacement))
