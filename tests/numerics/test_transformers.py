"""Logits, loss and every gradient equal those of transformers, on the path of a user with a checkpoint folder."""

from pathlib import Path

import pytest
from numerics.checks import errors_against_transformers, errors_apart
from numerics.families import CASES, Case
from numerics.harness import Compile, OracleOf, imported_text

TOLERANCE = 1e-5  # float32, relative to the largest element of each tensor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal(case: Case, oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    oracle = oracle_of(case)
    package = compiled(imported_text(oracle))
    apart = errors_against_transformers(package, oracle, tmp_path)
    if max(apart.values()) >= TOLERANCE:  # two roundings add up, and more on one CPU than on another
        apart = errors_apart(package, oracle, tmp_path)
    worst = max(apart, key=apart.__getitem__)
    print(f"{worst}: {apart[worst]:.1e}")
    assert apart[worst] < TOLERANCE, {name: error for name, error in apart.items() if error >= TOLERANCE}
