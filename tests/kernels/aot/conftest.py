"""The lane of ahead-of-time compilation: real dims, no GPU. Not in the process of the interpreter."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsc.compiler.bench.case import never_read

sys.path.append(str(Path(__file__).parents[2]))  # tests import their helpers as kernels.*

collect_ignore_glob = ["test_*.py"] if os.environ.get("TRITON_INTERPRET") == "1" else []


@pytest.fixture(autouse=True)
def _inputs_are_never_read() -> Iterator[None]:
    with never_read():
        yield
