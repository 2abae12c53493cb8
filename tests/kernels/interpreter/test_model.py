"""A model with kernels computes what the same model without them does: one training step, loss and every gradient."""

import copy
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
import torch
from kernels.lab import calc_diff
from torch import Tensor, nn

from dsc.compiler.driver import build, emit
from dsc.compiler.shrink import shrunk
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]

FAMILIES = ["tiny", "deepseek-v2-lite", "llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b", "minicpm3-4b"]
BATCH, LENGTH = 2, 9


def on_gpus(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"cluster": Machines(kind="h100", nodes=1)})


def pair(name: str, emitted: Emitted) -> tuple[ModelSpec, nn.Module, nn.Module]:
    """The shrunken model on GPUs and without, with the same weights."""
    spec = shrunk(load(name))
    fused, plain = (emitted(emit(build(one)))("model").Model() for one in (on_gpus(spec), spec))
    torch.manual_seed(0)
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.05) if weight.dim() > 1 else nn.init.uniform_(weight, 0.5, 1.5)
    fused.load_state_dict(plain.state_dict())
    return spec, fused, plain


def step(model: nn.Module, dtype: torch.dtype, vocabulary: int) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one training step."""
    tokens = torch.randint(0, vocabulary, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    loss, _ = model.to(dtype).loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.item(), {key: weight.grad for key, weight in model.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step(name: str, emitted: Emitted) -> None:
    spec, fused, plain = pair(name, emitted)
    (loss, gradients), (expected_loss, expected) = (step(m, torch.float32, spec.vocab_size) for m in (fused, plain))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for key, gradient in gradients.items():
        assert calc_diff(gradient, expected[key]) <= 1e-9, key


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_in_bfloat16(name: str, emitted: Emitted) -> None:
    """Two ways of rounding are both wrong: the kernels' must not be further from float32 than PyTorch's."""
    spec, fused, plain = pair(name, emitted)
    for model in (fused, plain):
        model.bfloat16()
    exact = copy.deepcopy(plain)
    (loss, gradients), (plain_loss, others) = (step(m, torch.bfloat16, spec.vocab_size) for m in (fused, plain))
    exact_loss, expected = step(exact, torch.float32, spec.vocab_size)
    assert loss == pytest.approx(exact_loss, rel=2e-3) and plain_loss == pytest.approx(exact_loss, rel=2e-3)
    for key, gradient in gradients.items():
        assert calc_diff(gradient, expected[key]) <= 1.5 * calc_diff(others[key], expected[key]) + 1e-5, key


@pytest.mark.parametrize("name", ["tiny", "deepseek-v2-lite", "minicpm3-4b", "mixtral-8x7b"])
def test_decoding_in_pieces_equals_forward(name: str, emitted: Emitted) -> None:
    """A prompt over more than a page, then one token, then several at once; latent attention is absorbed there."""
    data = on_gpus(shrunk(load(name))).model_dump()
    if data["attention"]["kind"] == "mla":
        data["attention"] |= {"kv_lora_rank": 32, "qk_rope_head_dim": 16}  # dims that the kernel takes
    spec = ModelSpec.model_validate(data)
    package = emitted(emit(build(spec)))
    torch.manual_seed(0)
    model, decode = package("model").Model(), package("infer.decode")
    tokens = torch.randint(0, spec.vocab_size, (BATCH, 70), generator=torch.Generator().manual_seed(1))
    caches = [decode.LayerCache() for _ in model.layers]
    with torch.no_grad():
        expected = model(tokens)
        for start, end in ((0, 66), (66, 67), (67, 70)):
            logits = decode.model_forward(model, tokens[:, start:end], caches)
            assert calc_diff(logits[:, 0], expected[:, end - 1]) <= 1e-9
    assert ("mla_decode" in vars(decode)) == (spec.attention.kind == "mla")
