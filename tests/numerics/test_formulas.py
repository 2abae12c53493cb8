"""Logits, every part of the loss and every gradient equal the written formulas, in float64."""

import pytest
from numerics.checks import errors_against_formulas
from numerics.families import CASES, Case
from numerics.harness import Compile, OracleOf, Package, imported_text
from numerics.specs import SPECS

TOLERANCE = 1e-12

# One of each family, and what transformers and the formulas must agree on beyond the base.
FAMILIES = [case for case in CASES if case.is_base or case.variant in ("mscale_unlike_mscale_all_dim", "odd", "yarn")]


@pytest.mark.parametrize("name", SPECS)
def test_specs(name: str, compiled: Compile) -> None:
    assert_equal(compiled(SPECS[name]))


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_families(case: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    assert_equal(compiled(imported_text(oracle_of(case))))


def assert_equal(package: Package) -> None:
    apart = errors_against_formulas(package)
    worst = max(apart, key=apart.__getitem__)
    print(f"{worst}: {apart[worst]:.1e}")
    assert apart[worst] < TOLERANCE, {name: error for name, error in apart.items() if error >= TOLERANCE}
