"""Multi-token prediction: what each depth reads, predicts and weighs. The formulas as a whole are in test_formulas."""

import pytest
import torch
from numerics import reference
from numerics.harness import Compile, Package, next_tokens, random_model, relative_error, some_tokens
from numerics.specs import MTP, spec_text
from torch import Tensor

LENGTH = 12
VARIANTS = [(depth, hidden) for depth in (1, 2, 3) for hidden in ("post_norm", "pre_norm")]


def package_of(compiled: Compile, depth: int = 1, hidden: str = "post_norm") -> Package:
    return compiled(spec_text(mtp={**MTP, "depth": depth, "hidden": hidden}))


def labels_with_gaps(tokens: Tensor) -> Tensor:
    labels = next_tokens(tokens)
    labels[0, 2:6] = -100
    labels[1, ::3] = -100
    return labels


@pytest.mark.parametrize(("depth", "hidden"), VARIANTS)
def test_ignored_labels_count_in_no_depth(depth: int, hidden: str, compiled: Compile) -> None:
    package = package_of(compiled, depth, hidden)
    model, tokens = random_model(package), some_tokens(length=LENGTH)
    labels = labels_with_gaps(tokens)
    loss, parts = model.loss(tokens, labels)
    written = reference.losses(tokens, labels, package.tensors(model), package.spec)
    assert relative_error(parts["main"], written.main) < 1e-12
    assert relative_error(parts["mtp"], written.mtp) < 1e-12
    assert relative_error(loss, written.main + written.mtp) < 1e-12


@pytest.mark.parametrize(("depth", "hidden"), VARIANTS)
def test_depth_k_is_graded_on_labels_k_further(depth: int, hidden: str, compiled: Compile) -> None:
    """A change of labels[p] reaches depth k at position p - k alone: the first k labels grade no depth k."""
    package = package_of(compiled, depth, hidden)
    model, tokens = random_model(package), some_tokens(batch=1, length=LENGTH)
    labels = next_tokens(tokens)

    def mtp_loss(changed: int) -> float:
        other = labels.clone()
        other[0, changed] = (other[0, changed] + 1) % package.spec.vocab_size
        return model.loss(tokens, other)[1]["mtp"].item()

    unchanged = model.loss(tokens, labels)[1]["mtp"].item()
    assert mtp_loss(0) == unchanged
    assert all(mtp_loss(position) != unchanged for position in range(1, LENGTH - 1))


@pytest.mark.parametrize(("depth", "hidden"), VARIANTS)
def test_no_depth_sees_its_own_answer(depth: int, hidden: str, compiled: Compile) -> None:
    """Only what is graded on the label after the last token may have read the last token."""
    package = package_of(compiled, depth, hidden)
    model, tokens = random_model(package), some_tokens(batch=1, length=LENGTH)
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % package.spec.vocab_size

    def change(last_label: int) -> float:
        labels = next_tokens(tokens)
        labels[0, -1] = last_label
        before, after = (model.loss(t, labels)[1]["mtp"] for t in (tokens, other))
        return relative_error(after, before)

    assert change(-100) < 1e-12
    assert change(7) > 1e-6


def test_the_sum_of_depths_is_weighed_once(compiled: Compile) -> None:
    """lambda / D: two depths that predict alike weigh as much as one."""
    model = random_model(package_of(compiled, 2))
    light = compiled(spec_text(mtp={**MTP, "depth": 2, "loss_weight": 0.1})).model.Model().double()
    light.load_state_dict(model.state_dict())
    tokens = some_tokens(length=LENGTH)
    losses = [m.loss(tokens, next_tokens(tokens))[1]["mtp"].item() for m in (model, light)]
    assert losses[0] == pytest.approx(3 * losses[1], rel=1e-12)


def test_the_two_hidden_states_differ(compiled: Compile) -> None:
    model = random_model(package_of(compiled, 1, "post_norm"))
    other = package_of(compiled, 1, "pre_norm").model.Model().double()
    other.load_state_dict(model.state_dict())
    tokens = some_tokens(length=LENGTH)
    first, second = (m.loss(tokens, next_tokens(tokens))[1] for m in (model, other))
    assert first["main"].item() == second["main"].item()
    assert abs(first["mtp"].item() / second["mtp"].item() - 1) > 1e-3


def test_logits_do_not_need_the_predictor(compiled: Compile) -> None:
    package = package_of(compiled)
    model, tokens = random_model(package), some_tokens(length=LENGTH)
    before = model(tokens)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(model(tokens), before)
