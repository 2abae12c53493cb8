"""What operators of a package share: the device they run on, and that autocast changes none of their dtypes."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.lab import kernels, randn, spec_with
from torch import Tensor, nn

from dsc.compiler.driver import build, emit

H100 = {"cluster.kind": "h100", "cluster.nodes": 1}
TEMPLATES = Path(__file__).parents[2] / "templates" / "kernels"


def test_every_operator_is_registered_in_one_way() -> None:
    """grouped_mm.py stands alone in a package without kernels, and launches none."""
    found = {path.name for path in TEMPLATES.glob("*.jinja") if "custom_op" in path.read_text()}
    assert found == {"launch.py.jinja", "grouped_mm.py.jinja"}


CODES = {"fp8_gemm.py.jinja", "fp8_grouped_gemm.py.jinja"}
"""They multiply codes of eight bits alone, which have no precision to name."""
PRECISE = 'input_precision="ieee"'
PRODUCT = re.compile(r"tl\.dot\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")


def products(text: str) -> list[str]:
    found = PRODUCT.findall(text)
    assert len(found) == text.count("tl.dot(")
    return found


def test_every_product_names_its_precision() -> None:
    """Where it is left out, a GPU rounds operands in float32 to TF32."""
    texts = {path.name: path.read_text() for path in TEMPLATES.glob("*.jinja")}
    named = {name: [PRECISE in product for product in products(text)] for name, text in texts.items()}
    assert {name for name, all_of in named.items() if not all(all_of)} == CODES
    assert not any(any(named[name]) for name in CODES) and sum(map(len, named.values())) > 30


def test_an_operator_runs_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    (launch,) = kernels(("launch",))
    asked: list[Tensor] = []

    def device_of(x: Tensor) -> Any:
        asked.append(x)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)

    def total(tensors: list[Tensor], scale: float) -> Tensor:
        assert len(asked) == 1
        return torch.stack(tensors).sum(0) * scale

    operator = launch.operator("test_launch", "total")(total)
    x = randn(3)
    assert torch.equal(operator([x, x], 2.0), 4 * x)
    assert asked[0].data_ptr() == x.data_ptr()


def test_the_logits_of_the_router_stay_in_float32() -> None:
    (module,) = kernels(("router_logits",))
    x, weight = randn(40, 64, dtype=torch.bfloat16), randn(8, 64)
    expected = module.router_logits(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module.router_logits(x, weight)
    assert logits.dtype is torch.float32 and torch.equal(logits, expected)


@pytest.mark.parametrize("tokens", [(40,), (2, 20), (0, 3)])
def test_bfloat16_logits_leave_the_matrix_units_in_float32(tokens: tuple[int, ...]) -> None:
    """The call that a GPU runs, by its shapes and dtypes alone: PyTorch has no such product on a CPU."""
    (module,) = kernels(("router_logits",))
    x, weight = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((*tokens, 64), (8, 64)))
    logits = module._summed_in_float32(x, weight)
    assert logits.dtype is torch.float32 and logits.shape == (*tokens, 8)


def test_logits_are_exact_on_a_cpu() -> None:
    (module,) = kernels(("router_logits",))
    x, weight = randn(2, 20, 64, dtype=torch.bfloat16), randn(8, 64, dtype=torch.bfloat16, seed=1)
    assert torch.equal(module.router_logits(x, weight), x.float() @ weight.float().T)


def test_the_loss_of_the_head_stays_in_float32() -> None:
    """Its operands are rounded to bfloat16, as those of any product; gradients come in the dtype of the parameters."""
    (module,) = kernels(("linear_cross_entropy",), vocab_size=64, hidden_size=32)
    hidden, weight = randn(9, 32).requires_grad_(), randn(64, 32, seed=1).requires_grad_()
    labels = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.linear_cross_entropy(hidden, weight, labels)
    rounded = module.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels)
    assert loss.dtype is torch.float32 and torch.equal(loss, rounded)
    assert {g.dtype for g in torch.autograd.grad(loss, (hidden, weight))} == {torch.float32}


@pytest.mark.parametrize("keys", [H100, {**H100, "precision.linear.kind": "fp8_block"}], ids=["bf16", "fp8"])
def test_training_under_autocast(emitted: Callable[..., Any], keys: dict[str, Any]) -> None:
    """A package with kernels and multi-token prediction, here by their references; parameters in float32."""
    files = emit(build(spec_with("tiny", keys)))
    assert re.search(r"routed_experts\(", files["model.py"])
    torch.manual_seed(0)
    model = emitted(files)("model").Model()
    tokens = torch.randint(64, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(tokens, tokens)
    loss.backward()
    assert loss.dtype is torch.float32 and loss.isfinite()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.dtype is torch.float32 and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("name", ["tiny", "deepseek-v2-lite", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_plain_routers_and_losses_stay_in_float32(name: str, emitted: Callable[..., Any], shrunk: Any) -> None:
    """In packages of plain PyTorch. A router that computes in float32 chooses as it does without autocast."""
    spec = shrunk(spec_with(name, {"cluster": None}))
    torch.manual_seed(0)
    model = emitted(emit(build(spec)))("model").Model()
    routers = [module for module in model.modules() if type(module).__name__ == "Router"]
    seen: list[tuple[nn.Module, Tensor, Any]] = []
    hooks = [r.register_forward_hook(lambda module, x, y: seen.append((module, x[0], y))) for r in routers]
    tokens = torch.randint(spec.vocab_size, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = model.loss(tokens, tokens)
    for hook in hooks:
        hook.remove()
    assert {part.dtype for part in (loss, *parts.values())} == {torch.float32} and loss.isfinite()
    assert len(seen) >= len(routers) > 0
    exact = spec.moe().router.compute_dtype == "float32"
    for router, x, (experts, weights, *_) in seen:
        assert weights.dtype is torch.float32
        same = torch.equal(experts, router(x)[0]) and torch.equal(weights, router(x)[1])
        assert same or not exact
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
