"""Budgets of compiled kernels notice what grew and what shrank."""

import pytest
from kernels.budgets import differences

ACCEPTED = {
    "function": "f", "registers": 64, "spilled": 0, "shared": 2048, "instructions": 1000, "wide_loads": 4,
    "matrix": ["HGMMA"],
}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"registers": 65}, {"registers": 56}, {"spilled": 8}, {"shared": 4096}, {"shared": 1024}, {"instructions": 1021},
    {"instructions": 979}, {"wide_loads": 3}, {"wide_loads": 5}, {"matrix": []}, {"matrix": ["HMMA"]},
])  # fmt: skip
def test_both_ways(change: dict[str, object]) -> None:
    assert len(differences(ACCEPTED | change, ACCEPTED)) == 1


def test_what_moves_within_a_step_is_none() -> None:
    assert differences(ACCEPTED | {"registers": 57, "instructions": 985}, ACCEPTED) == []
