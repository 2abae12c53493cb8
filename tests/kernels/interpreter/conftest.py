"""The lane of Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpreter`, a process of its own."""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    import torch
    from kernels import repair

    repair.install()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel never writes, or reads past its end, shows: fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
