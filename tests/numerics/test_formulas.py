"""Logits, every part of the loss and every gradient equal the written formulas, in float64."""

import pytest
import torch
from numerics import reference
from numerics.families import CASES, Case
from numerics.harness import (
    Compile,
    OracleOf,
    Package,
    errors,
    gradients_of,
    imported_text,
    is_bias,
    next_tokens,
    random_model,
    some_tokens,
)
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


def errors_against_formulas(package: Package) -> dict[str, float]:
    model, tokens = random_model(package), some_tokens(length=11)
    labels = next_tokens(tokens)
    labels[0, 3:5] = -100
    total, parts = model.loss(tokens, labels)
    total.backward()

    weights = {name: tensor.double().requires_grad_() for name, tensor in package.tensors(model).items()}
    written = reference.losses(tokens, labels, weights, package.spec)
    expected = {"main": written.main, "mtp": written.mtp, "balance": written.balance}
    expected_total = torch.stack(list(expected.values())).sum()
    expected_total.backward()
    return errors(
        {"logits": model(tokens), "loss": total, **parts, **gradients_of(package, model)},
        {
            "logits": reference.logits(tokens, weights, package.spec),
            "loss": expected_total,
            **{name: expected[name] for name in parts},
            **{n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items() if not is_bias(n)},
        },
    )
