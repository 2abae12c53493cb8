"""At every bound of a number of the language, a step of training is finite: what lies beyond is refused."""

import json
from typing import Any

import pytest
import torch
from numerics.harness import Compile, next_tokens, some_tokens
from numerics.specs import MTP, spec_text

from dsc.spec.errors import DscError
from dsc.spec.loader import loads

YARN = "attention.rope.scaling"
BALANCE = "ffn.moe.router.balance"
BOUNDS: dict[str, tuple[float, float]] = {
    "norm.eps": (1e-20, 1.0),
    "attention.latent_norm_eps": (1e-20, 1.0),
    "embedding_multiplier": (1e-6, 1e6),
    "logit_multiplier": (1e-6, 1e6),
    "residual.multiplier": (1e-6, 1e6),
    "initializer_range": (0.0, 100.0),
    "z_loss": (1e-12, 1e6),
    "mtp.loss_weight": (0.0, 1e6),
    "ffn.swiglu_limit": (1e-6, 1e6),
    "ffn.moe.router.routed_scaling_factor": (1e-6, 1e6),
    f"{BALANCE}.bias_update_rate": (1e-12, 1e6),
    f"{BALANCE}.sequence_aux_loss_alpha": (1e-12, 1e6),
    "attention.rope.theta": (1.001, 1e15),
    f"{YARN}.factor": (1.0, 1e6),
    f"{YARN}.beta_fast": (0.5, 1e6),
    f"{YARN}.beta_slow": (1e-6, 4.0),
    f"{YARN}.mscale": (0.0, 100.0),
    f"{YARN}.mscale_all_dim": (0.0, 100.0),
}
CASES = [(path, value) for path, values in BOUNDS.items() for value in values]
QUICK = {("norm.eps", 1e-20), (f"{YARN}.mscale_all_dim", 100.0), (f"{YARN}.beta_slow", 1e-6), ("ffn.swiglu_limit", 1e6)}


def text_with(path: str, value: float, **others: object) -> str:
    spec: dict[str, Any] = json.loads(spec_text(mtp=MTP, residual={}, ffn__moe__router__balance={}, **others))
    *sections, key = path.split(".")
    section = spec
    for name in sections:
        section = section[name]
    section[key] = value
    return json.dumps(spec)


def assert_finite_step(compiled: Compile, text: str) -> None:
    model = compiled(text).model.Model()
    tokens = some_tokens()
    loss, _ = model.loss(tokens, next_tokens(tokens))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("path", "value"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_step_at_a_bound_is_finite(path: str, value: float, compiled: Compile) -> None:
    assert_finite_step(compiled, text_with(path, value))


def test_weights_of_zero_with_the_least_eps(compiled: Compile) -> None:
    assert_finite_step(compiled, text_with("norm.eps", 1e-20, initializer_range=0.0))


@pytest.mark.parametrize("path", BOUNDS)
@pytest.mark.parametrize("beyond", [1e39, 1e160, 1e308])
def test_what_float32_does_not_hold_is_refused(path: str, beyond: float) -> None:
    with pytest.raises(DscError, match="DSC011"):
        loads(text_with(path, beyond), "spec.yaml")


@pytest.mark.parametrize("path", [path for path, (least, _) in BOUNDS.items() if least and "theta" not in path])
def test_what_is_zero_in_float32_is_refused(path: str) -> None:
    with pytest.raises(DscError, match="DSC011"):
        loads(text_with(path, 5e-324), "spec.yaml")
