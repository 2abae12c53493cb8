"""The lane of ahead-of-time compilation: real dims, no GPU. Not in the process of the interpreter."""

import os
from collections.abc import Iterator

import pytest

from dsc.compiler.bench.case import never_read

collect_ignore_glob = ["test_*.py"] if os.environ.get("TRITON_INTERPRET") == "1" else []


@pytest.fixture(autouse=True)
def _inputs_are_never_read() -> Iterator[None]:
    with never_read():
        yield
