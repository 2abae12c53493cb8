"""Serving tests share the fixtures of tests/numerics: packages compiled once, one thread, a seed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # helpers are imported as numerics.* and serving.*

from numerics.conftest import _one_thread_and_a_seed, compiled, oracle_of

__all__ = ["_one_thread_and_a_seed", "compiled", "oracle_of"]
