"""A batch with no label to learn from: zero loss and finite gradients, whichever way losses are computed."""

import pytest
import torch
from numerics.harness import Compile, random_model, some_tokens
from numerics.specs import MTP, spec_text

from dsc.spec.cluster import Machines

LOSSES = {"plain": {}, "z-loss": {"z_loss": 1e-4}, "predictions": {"mtp": MTP}}


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("kind", LOSSES)
def test_no_label_no_loss(kind: str, kernels: bool, compiled: Compile) -> None:
    cluster = {"cluster": Machines(kind="h100", nodes=1).model_dump()} if kernels else {}
    model = random_model(compiled(spec_text(**LOSSES[kind], **cluster)))
    tokens = some_tokens()
    loss, parts = model.loss(tokens, torch.full_like(tokens, -100))
    loss.backward()
    assert parts["main"] == 0 and parts.get("mtp", 0) == 0
    for name, weight in model.named_parameters():
        assert weight.grad is None or weight.grad.isfinite().all(), name
