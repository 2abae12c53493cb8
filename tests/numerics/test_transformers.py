"""Logits, loss and every gradient equal those of transformers, on the path of a user with a checkpoint folder."""

from pathlib import Path

import pytest
from numerics.families import CASES, Case
from numerics.harness import (
    Compile,
    OracleOf,
    errors,
    imported_text,
    outputs_of_oracle,
    outputs_of_package,
    some_tokens,
)

TOLERANCE = 1e-5  # float32, relative to the largest element of each tensor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal(case: Case, oracle_of: OracleOf, compiled: Compile, tmp_path: Path) -> None:
    oracle, tokens = oracle_of(case), some_tokens()
    package = compiled(imported_text(oracle))
    found = outputs_of_package(package, package.load(oracle.folder), tokens)
    apart = errors(found, outputs_of_oracle(oracle, tokens, tmp_path))
    worst = max(apart, key=apart.__getitem__)
    print(f"{worst}: {apart[worst]:.1e}")
    assert apart[worst] < TOLERANCE, {name: error for name, error in apart.items() if error >= TOLERANCE}
