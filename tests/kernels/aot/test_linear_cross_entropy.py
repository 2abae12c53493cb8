"""kernels/linear_cross_entropy.py at the sizes of DeepSeek-V3 and Llama 3.1, compiled for every architecture."""

import pytest
from kernels.ahead import check_budget, compile_launches
from kernels.lab import kernels

from dsc.compiler.bench.cases.linear_cross_entropy import cases
from dsc.compiler.kernels.linear_cross_entropy import shared_memory
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.kernels.tuning import table

MODELS = ("deepseek-v3", "llama-3.1-8b")


@pytest.mark.parametrize("arch", TARGETS)
def test_budget(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {}
    for model in MODELS if arch == "sm_90" else MODELS[:1]:
        (module,) = kernels(("linear_cross_entropy",), model, arch)
        monkeypatch.setattr(module, "_multiply", lambda *operands, add: None)  # the library's; there is nothing in them
        monkeypatch.setattr(module, "VOCAB_CHUNK", module.VOCAB_SIZE)  # the launches of all chunks are the same
        for case in cases(module, 4096, "cpu"):
            measured[case.name] = compile_launches([module], case.run, arch)
    (tile,) = {
        shared_memory(TARGETS[arch], row["tile"])
        for rows in table("linear_cross_entropy").values()
        for row in rows
        if arch in row["arch"]
    }
    for launches in measured.values():
        (launch,) = launches
        assert launch.shared <= tile <= TARGETS[arch].shared_memory
        assert launch.matrix or arch == "sm_80"
        if arch == "sm_90":
            assert launch.spilled == 0
            assert "HGMMA" in launch.matrix
            assert launch.wide_loads > 0
    check_budget("linear_cross_entropy", arch, measured)
