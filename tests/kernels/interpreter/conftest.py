"""The lane of Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpreter`, a process of its own."""

import os
from collections.abc import Iterator

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    import torch
    from kernels import repair
    from kernels.watched import guarded

    repair.install()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel never writes, or reads past its end, shows: fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)


@pytest.fixture(autouse=True)
def _within_tensors() -> Iterator[None]:
    """A fault that reads or stores past a tensor is an error of its test, and never the end of the process."""
    with guarded():
        yield
