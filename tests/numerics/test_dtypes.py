"""Types and places: float64 loses nothing, meta loads exactly, bfloat16 trains, packages do not meet."""

import shutil
from pathlib import Path

import pytest
import torch
from numerics import reference
from numerics.families import CASES, Case
from numerics.harness import (
    Compile,
    OracleOf,
    Package,
    import_package,
    imported_text,
    next_tokens,
    random_model,
    randomise,
    relative_error,
    some_tokens,
)
from numerics.specs import BASE, MTP, spec_text
from torch import nn

EVERYTHING = spec_text(mtp=MTP, ffn__moe__router__balance={"bias_update_rate": 0.01, "sequence_aux_loss_alpha": 0.01})
SCALINGS = [
    case
    for case in CASES
    if case.variant in ("mscale_unlike_mscale_all_dim", "betas_1_1", "plain_rope", "yarn", "half_layout", "base")
]


@pytest.mark.parametrize("case", SCALINGS, ids=str)
def test_positions_far_out_keep_float64(case: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    """Angles of thousands of radians: float32 would leave errors of 1e-4 in the table."""
    package = compiled(imported_text(oracle_of(case)))
    attention, length = next(iter(package.spec.attentions.values())), 5000
    rope, dim = attention.rope, getattr(attention, "qk_rope_head_dim", None) or attention.head_dim
    cos, sin = package.model.rotary_table(length, torch.zeros((), dtype=torch.float64))
    frequencies = torch.tensor(reference.frequencies(rope, dim), dtype=torch.float64)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    assert cos.dtype == torch.float64
    torch.testing.assert_close(cos, angles.cos(), rtol=0, atol=1e-11)
    torch.testing.assert_close(sin, angles.sin(), rtol=0, atol=1e-11)


def test_double_logits_equal_the_formulas(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    package = compiled(imported_text(oracle_of(family)))
    model = package.load(oracle_of(family).folder).double()
    tokens = some_tokens(batch=1)
    logits = model(tokens)
    assert logits.dtype == torch.float64
    weights = {name: tensor.double() for name, tensor in package.tensors(model).items()}
    assert relative_error(logits, reference.logits(tokens, weights, package.spec)) < 1e-12


def test_double_is_no_cast_of_a_float32_table(compiled: Compile) -> None:
    """There and back again: nothing of a model's positions was spoilt by a cast."""
    model, tokens = random_model(compiled(EVERYTHING), torch.float32), some_tokens()
    expected = model(tokens)
    assert torch.equal(model.double().float()(tokens), expected)
    assert torch.equal(model.half().float().double()(tokens), model(tokens))


def test_meta_construction_loads_exactly(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    oracle = oracle_of(family)
    package = compiled(imported_text(oracle))
    usual, tokens = package.load(oracle.folder), some_tokens()
    with torch.device("meta"):
        model = package.model.Model()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    package.checkpoint.load_hf(model, oracle.folder)
    for (name, tensor), (_, expected) in zip(model.named_buffers(), usual.named_buffers(), strict=True):
        assert torch.equal(tensor, expected), name
    for (name, tensor), (_, expected) in zip(model.named_parameters(), usual.named_parameters(), strict=True):
        assert torch.equal(tensor, expected), name
        assert isinstance(tensor, nn.Parameter) and tensor.requires_grad
    assert torch.equal(model(tokens), usual(tokens))


def test_meta_construction_in_bfloat16_casts_on_load(compiled: Compile, tmp_path: Path) -> None:
    package = compiled(EVERYTHING)
    model = random_model(package, torch.float32)
    package.checkpoint.save_hf(model, tmp_path)
    with torch.device("meta"):
        loaded = package.model.Model().bfloat16()
    package.checkpoint.load_hf(loaded, tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).bfloat16()), name


def test_bfloat16_trains(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    assert_trains_in_bfloat16(compiled(imported_text(oracle_of(family))))


def test_bfloat16_trains_with_every_loss(compiled: Compile) -> None:
    assert_trains_in_bfloat16(compiled(EVERYTHING))


def assert_trains_in_bfloat16(package: Package) -> None:
    model, tokens = random_model(package, torch.float32), some_tokens()
    exact, _ = model.loss(tokens, next_tokens(tokens))
    rounded = random_model(package, torch.float32).bfloat16()
    loss, parts = rounded.loss(tokens, next_tokens(tokens))
    assert rounded(tokens).dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in (loss, *parts.values()))
    assert abs(loss.item() / exact.item() - 1) < 0.05
    loss.backward()
    for parameter_name, parameter in rounded.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


def test_the_selection_bias_stays_float32(compiled: Compile) -> None:
    """A step of 0.001 on a bias near 1 would be lost in bfloat16. Moves between devices still move it."""
    model = random_model(compiled(EVERYTHING), torch.float32)
    before = {name: bias.clone() for name, bias in model.named_buffers() if "e_score" in name}
    assert before
    for cast in (model.bfloat16, model.half, model.double, lambda: model.to("cpu", torch.bfloat16)):
        cast()
        for name, bias in before.items():
            assert model.get_buffer(name).dtype == torch.float32 and torch.equal(model.get_buffer(name), bias)
    model.to("meta")
    assert all(model.get_buffer(name).is_meta for name in before)
    model.to_empty(device="cpu")
    assert all(model.get_buffer(name).dtype == torch.float32 for name in before)


def test_packages_of_different_specs_do_not_meet(compiled: Compile) -> None:
    """Same classes, operators and constants by name, different ones by value, forward and backward interleaved."""
    texts = [spec_text(), spec_text(hidden_size=40, ffn__moe__n_routed_experts=16, attention__num_attention_heads=2)]
    tokens = some_tokens()

    def gradient_of_loss(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    alone = []
    for text in texts:
        model = random_model(compiled(text))
        alone.append(gradient_of_loss(model, model.loss(tokens, next_tokens(tokens))[0]))
    models = [random_model(compiled(text)) for text in texts]
    losses = [model.loss(tokens, next_tokens(tokens))[0] for model in models]
    together = [gradient_of_loss(model, loss) for model, loss in zip(models, losses, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_one_package_under_two_names(compiled: Compile, tmp_path: Path) -> None:
    """The copy is edited: if anything were shared, one of the two would compute what the other says."""
    package = compiled(spec_text())
    folder = shutil.copytree(package.folder, tmp_path / "another_name", ignore=shutil.ignore_patterns("__pycache__"))
    same = import_package(package.spec, folder)
    source = (folder / "dims.py").read_text()
    assert "ROUTED_SCALING_FACTOR = 2.5" in source
    edited_folder = shutil.copytree(folder, tmp_path / "edited", ignore=shutil.ignore_patterns("__pycache__"))
    (edited_folder / "dims.py").write_text(source.replace("ROUTED_SCALING_FACTOR = 2.5", "ROUTED_SCALING_FACTOR = 1.0"))
    edited = import_package(package.spec, edited_folder)
    tokens, original = some_tokens(), random_model(package)
    before = original(tokens)
    assert torch.equal(random_model(same)(tokens), before)
    assert not torch.allclose(random_model(edited)(tokens), before)
    assert torch.equal(original(tokens), before)
    operators = {one.model.grouped_mm.__globals__["_NAMESPACE"] for one in (package, same, edited)}
    assert len(operators) == 3


def test_a_model_is_random_in_the_default_type(compiled: Compile) -> None:
    package = compiled(spec_text())
    first, second = package.model.Model(), package.model.Model()
    assert first.embed_tokens.weight.dtype == torch.get_default_dtype()
    assert not torch.equal(first.embed_tokens.weight, second.embed_tokens.weight)
    assert first.layers[1].mlp.gate_up_proj.std().item() == pytest.approx(0.02, rel=0.1)
    assert all((p == 1).all() for p in first.parameters() if p.dim() == 1)
    randomise(first)
    first.init_weights()
    assert first.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert BASE["vocab_size"] == first.lm_head.weight.shape[0]
