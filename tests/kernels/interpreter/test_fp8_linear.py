"""kernels/fp8_linear.py in the interpreter: linear layers in FP8 against the quantized formula in float64."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from kernels.interpreter.test_fp8_gemm import BOUNDS, CHANGES, WIDTHS, exact
from kernels.lab import calc_diff, kernels, mutated, randn
from torch import Tensor


def modules() -> list[ModuleType]:
    return kernels(("fp8_quantize", "fp8_gemm", "fp8_linear"), **CHANGES)


def check_linear(linear: ModuleType, rows: int, n: int, k: int) -> None:
    """Forward and both gradients, quantized by the reference and multiplied in float64."""
    quantize, *_ = modules()
    x, w, dy = (randn(*s, dtype=torch.bfloat16, seed=i) for i, s in enumerate(((rows, k), (n, k), (rows, n))))
    w = (w * k**-0.5).requires_grad_()
    y = linear.fp8_linear(x.requires_grad_(), w)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    x, w = x.detach(), w.detach()
    weight, weight_scale = quantize.reference_blocks(w)
    expected = (
        exact(*quantize.reference_rows(x), weight, weight_scale),
        exact(*quantize.reference_rows(dy), weight.T, weight_scale.T),
        exact(*quantize.reference_rows(dy.T), *quantize.reference_rows(x.T)),
    )
    wide = (x.double() @ w.double().T, dy.double() @ w.double(), dy.double().T @ x.double())
    for actual, codes_exact, unquantized in zip((y, dx, dw), expected, wide, strict=True):
        assert actual.dtype is torch.bfloat16
        assert calc_diff(actual, codes_exact) <= BOUNDS[torch.bfloat16]
        assert calc_diff(actual, unquantized) <= 1e-3  # what three bits of mantissa cost


def check_shared_input(linear: ModuleType) -> None:
    x, *weights = (
        randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(((2, 20, 128), (48, 128), (80, 128)))
    )
    together = linear.fp8_linears(x, weights)
    apart = [linear.fp8_linear(x, weight) for weight in weights]
    dys = [randn(*y.shape, seed=5) for y in together]
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        torch.autograd.grad(together, (x, *weights), dys), torch.autograd.grad(apart, (x, *weights), dys), strict=True
    ):
        assert a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("rows", [1, 37, 256])
def test_linear(rows: int) -> None:
    for n, k in WIDTHS[:3]:
        check_linear(modules()[-1], rows, n, k)


@pytest.mark.parametrize("factor", [1e-3, 1e-6, 1e-9])
def test_small_gradients(factor: float) -> None:
    """Those of a loss that is a mean over many tokens: as good as those of any other."""
    *_, linear = modules()
    x, w, dy = (randn(*shape, seed=i) for i, shape in enumerate(((40, 128), (80, 128), (40, 80))))
    y = linear.fp8_linear(x.requires_grad_(), w.requires_grad_())
    for actual, expected in zip(torch.autograd.grad(y, (x, w), dy * factor), (dy @ w, dy.T @ x), strict=True):
        assert calc_diff(actual / factor, expected) <= 1e-3


def test_layers_that_share_an_input() -> None:
    """One quantized copy for all, and the sum of the gradients that reach x."""
    check_shared_input(modules()[-1])


def saved_by(run: object, weights: list[Tensor]) -> Iterator[Tensor]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run()  # type: ignore[operator]
    return (t for t in kept if all(t is not weight and t.data_ptr() != weight.data_ptr() for weight in weights))


def test_what_is_saved() -> None:
    """The codes of x transposed and their scales, once for two layers: 1 + 4 / 128 bytes an element."""
    *_, linear = modules()
    x, *weights = (randn(*s, dtype=torch.bfloat16).requires_grad_() for s in ((256, 128), (48, 128), (80, 128)))
    kept = list(saved_by(lambda: linear.fp8_linears(x, weights), weights))
    assert sum(t.nbytes for t in kept) == x.numel() * (1 + 4 / 128)


def test_without_gradients() -> None:
    """Inference quantizes along K alone."""
    quantize, gemm, linear = modules()
    x, w = randn(9, 128, dtype=torch.bfloat16), randn(80, 128, dtype=torch.bfloat16, seed=1).requires_grad_()
    with torch.no_grad():
        y = linear.fp8_linear(x, w)
        codes = quantize.quantize_blocks(w)
        assert torch.equal(y, gemm.multiply(*quantize.quantize_rows(x), *codes, torch.bfloat16))
    assert torch.equal(y, linear.fp8_linear(x, w))


def test_the_reference_emulates_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CPUs: forward and gradients as the kernels have them."""
    quantize, gemm, linear = modules()
    for module in (quantize, gemm):
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    for n, k in WIDTHS:
        check_linear(linear, 37, n, k)


def test_no_rows_at_all() -> None:
    *_, linear = modules()
    x, w = randn(1, 0, 128).requires_grad_(), randn(48, 128).requires_grad_()
    y = linear.fp8_linear(x, w)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert y.shape == (1, 0, 48) and dx.shape == x.shape and not dw.any()


def test_operators() -> None:
    """Schemas, and what FakeTensor is told, are those of the real ones."""
    linear = modules()[-1]
    x, dy = randn(37, 200, dtype=torch.bfloat16), randn(37, 80, dtype=torch.bfloat16)
    weights = [randn(80, 200, dtype=torch.bfloat16), randn(80, 200)]
    _, q_t, scale_t = linear._training(x, weights)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(linear._linear, (x, weights), test_utils=checks)
    torch.library.opcheck(linear._training, (x, weights), test_utils=checks)
    # Schemas are checked by comparing operands with copies, for which PyTorch lacks float8 on CPUs.
    torch.library.opcheck(linear.backward, ([dy, dy], q_t, scale_t, weights), test_utils=checks[1])


FAULTS = {
    "gradient of the last layer alone": ("sum(others, start=first)", "(others or [first])[-1]"),
    "dgrad with untransposed scales": (
        "*codes_of(weight, transposed_blocks), dy.dtype",
        "*(lambda codes, scale: (codes, scale.mT))(*codes_of(weight, transposed_blocks)), dy.dtype",
    ),
    "dgrad of the rows that were added": (
        "return multiply(q[: len(dy)], scale",
        "return multiply(q[-len(dy) :], scale",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    linear = mutated("fp8_linear", *FAULTS[fault], **CHANGES)
    with pytest.raises(AssertionError):
        check_linear(linear, 37, 192, 384)
        check_shared_input(linear)
