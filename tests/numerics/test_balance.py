"""What keeps experts evenly loaded: the bias rule on counts of all forwards, the loss over each sequence."""

import pytest
import torch
from numerics import reference
from numerics.families import LENGTH
from numerics.harness import Compile, Package, next_tokens, random_model, relative_error, some_tokens
from numerics.specs import MTP, balanced, spec_text
from torch import Tensor, nn

RATE = 0.01
BALANCE = {"bias_update_rate": RATE, "sequence_aux_loss_alpha": 0.7}
BIASED = balanced(bias_update_rate=RATE)
WITH_MTP = spec_text(mtp={**MTP, "depth": 2}, ffn__moe__router__balance=BALANCE)
WITH_KERNELS = spec_text(
    mtp={**MTP, "depth": 2}, ffn__moe__router__balance=BALANCE, cluster={"kind": "h100", "nodes": 1}
)


def routers(package: Package, model: nn.Module) -> dict[str, nn.Module]:
    """By the name of their layer in a checkpoint, in order."""
    return {
        package.checkpoint.hf_name(f"{name}.weight").split(".mlp.")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, package.model.Router)
    }


def loads_of(batches: list[Tensor], package: Package, model: nn.Module) -> list[list[int]]:
    """How often each expert was chosen in each layer, MTP's after the others, by the reference."""
    weights, experts = package.tensors(model), package.spec.moe().n_routed_experts
    loads: list[list[int]] = [[0] * experts for _ in routers(package, model)]
    for row in torch.cat(batches):
        result = reference.run(row, weights, package.spec)
        _, ahead = reference.predict_ahead(row, result.state, weights, package.spec)
        for load, routed in zip(loads, [*result.routed, *ahead], strict=True):
            for expert in (expert for token in routed.chosen for expert in token):
                load[expert] += 1
    return loads


@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("text", [BIASED, WITH_MTP, WITH_KERNELS], ids=["main", "mtp", "kernels"])
def test_the_bias_moves_against_the_load_of_all_forwards(text: str, forwards: int, compiled: Compile) -> None:
    package = compiled(text)
    model = random_model(package)
    batches = [some_tokens(length=9, seed=seed) for seed in range(forwards)]
    for tokens in batches:
        model.loss(tokens, next_tokens(tokens))
    before = {name: router.e_score_correction_bias.clone() for name, router in routers(package, model).items()}
    expected_loads = loads_of(batches, package, model)
    loads = [router.expert_load.tolist() for router in routers(package, model).values()]
    assert loads == expected_loads
    model.update_selection_bias()
    for (name, router), load in zip(routers(package, model).items(), expected_loads, strict=True):
        expected = reference.updated_bias(before[name], load, RATE)
        assert torch.equal(router.e_score_correction_bias, expected), name
        assert not torch.equal(expected, before[name]), "the load should be uneven"
        assert router.expert_load.sum() == 0, "the count starts again"


def test_experts_at_the_mean_load_keep_their_bias(compiled: Compile) -> None:
    package = compiled(BIASED)
    router = package.model.Router()
    nn.init.zeros_(router.e_score_correction_bias)
    router.expert_load.copy_(torch.tensor([5, 5, 3, 7, 5, 0, 10, 5]))
    router.update_selection_bias()
    signs = router.e_score_correction_bias.sign().tolist()
    assert signs == [0, 0, 1, -1, 0, 1, -1, 0]
    assert set(router.e_score_correction_bias.abs().tolist()) == {0.0, torch.tensor(RATE).item()}


def test_an_update_without_forwards_changes_nothing(compiled: Compile) -> None:
    model = random_model(compiled(BIASED))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.update_selection_bias()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_evaluation_counts_nothing(compiled: Compile) -> None:
    package = compiled(BIASED)
    model, tokens = random_model(package).eval(), some_tokens()
    model(tokens)
    model.loss(tokens, next_tokens(tokens))
    assert all(router.expert_load.sum() == 0 for router in routers(package, model).values())


def test_evaluation_has_no_balance_loss(compiled: Compile) -> None:
    """It is zero there, and nothing is read that it would be made of; the other parts are those of training."""
    package = compiled(WITH_MTP)
    model, tokens = random_model(package), some_tokens()
    _, training = model.loss(tokens, next_tokens(tokens))
    loss, parts = model.eval().loss(tokens, next_tokens(tokens))
    assert parts.keys() == training.keys() and parts["balance"] == 0 < training["balance"]
    assert parts["main"] == training["main"] and loss == parts["main"] + parts["mtp"]
    scores = torch.zeros(2, 9, 8, dtype=torch.float64)
    assert package.model.Router().eval().balance_loss(scores, None).dtype == torch.float64


@pytest.mark.parametrize("text", [WITH_MTP, WITH_KERNELS], ids=["plain", "kernels"])
def test_the_same_tokens_have_the_same_loss_to_the_bit(text: str, compiled: Compile) -> None:
    model, tokens = random_model(compiled(text), torch.float32), some_tokens(batch=3)
    losses = [model.loss(tokens, next_tokens(tokens))[1]["balance"] for _ in range(5)]
    assert len({loss.item() for loss in losses}) == 1


def test_the_counts_are_no_part_of_a_checkpoint(compiled: Compile) -> None:
    package = compiled(BIASED)
    assert not any("expert_load" in name for name in package.tensors(random_model(package)))


def test_models_without_the_rule_have_no_trace_of_it(compiled: Compile) -> None:
    package = compiled(spec_text())
    assert not hasattr(package.model.Model, "update_selection_bias")
    assert not hasattr(package.model.Router(), "expert_load")


SOFTMAX = {"score": "softmax", "norm_topk_prob": False, "n_group": 4, "topk_group": 2, "group_score": "max"}


@pytest.mark.parametrize(
    "text",
    [
        balanced(sequence_aux_loss_alpha=0.7),
        spec_text(ffn__moe__router={**SOFTMAX, "balance": {"sequence_aux_loss_alpha": 0.7}}),
        WITH_MTP,
    ],
    ids=["sigmoid", "softmax", "mtp"],
)
def test_the_sequence_loss_is_the_mean_over_sequences(text: str, compiled: Compile) -> None:
    """Routing differs by sequence, so a mean over sequences is not the loss of all tokens as one sequence."""
    package = compiled(text)
    model, tokens = random_model(package), some_tokens(batch=3, length=9)
    labels = next_tokens(tokens)
    together = model.loss(tokens, labels)[1]["balance"]
    apart = [model.loss(tokens[i : i + 1], labels[i : i + 1])[1]["balance"] for i in range(3)]
    assert relative_error(together, torch.stack(apart).mean()) < 1e-12
    written = reference.losses(tokens, labels, package.tensors(model), package.spec)
    assert relative_error(together, written.balance) < 1e-12


def test_an_even_load_costs_alpha_per_layer(compiled: Compile) -> None:
    """Uniform scores make every P_e 1 / E, and all f_e add up to E: the loss is alpha, whatever was chosen."""
    package = compiled(balanced(sequence_aux_loss_alpha=0.7))
    router = package.model.Router().double()
    nn.init.zeros_(router.weight)
    *_, loss = router(torch.randn(2, LENGTH, package.spec.hidden_size).double())
    assert loss.item() == pytest.approx(0.7, rel=1e-12)
