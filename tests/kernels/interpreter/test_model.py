"""A model with kernels computes what the same model without them does: one training step, loss and every gradient."""

from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
import torch
from kernels.lab import calc_diff
from torch import nn

from dsc.compiler.driver import build, emit
from dsc.compiler.shrink import shrunk
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]

FAMILIES = ["tiny", "deepseek-v2-lite", "llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b", "minicpm3-4b"]
BOUNDS = {torch.float32: 1e-9, torch.bfloat16: 2e-3}
BATCH, LENGTH = 2, 9


def pair(name: str, emitted: Emitted) -> tuple[ModelSpec, nn.Module, nn.Module]:
    """The shrunken model on GPUs and without, with the same weights."""
    spec = shrunk(load(name))
    on_gpus = spec.model_copy(update={"cluster": Machines(kind="h100", nodes=1)})
    fused, plain = (emitted(emit(build(one)))("model").Model() for one in (on_gpus, spec))
    torch.manual_seed(0)
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.05) if weight.dim() > 1 else nn.init.uniform_(weight, 0.5, 1.5)
    fused.load_state_dict(plain.state_dict())
    return spec, fused, plain


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_one_step(name: str, dtype: torch.dtype, emitted: Emitted) -> None:
    spec, fused, plain = pair(name, emitted)
    tokens = torch.randint(0, spec.vocab_size, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (fused, plain):
        model.to(dtype)
        loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=BOUNDS[dtype] ** 0.5)
    gradients = {key: weight.grad for key, weight in plain.named_parameters()}
    for key, weight in fused.named_parameters():
        assert calc_diff(weight.grad, gradients[key]) <= BOUNDS[dtype], key
