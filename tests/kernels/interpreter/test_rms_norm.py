"""kernels/rms_norm.py in the interpreter: forward and backward against the reference in float64."""

import pytest
import torch
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

WIDTHS = [3, 48, 64, 100, 256]
DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}
EPS = 1e-6


def norm(width: int):
    (module,) = kernels(("rms_norm",), hidden_size=width)
    return module


def inputs(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = ((rows, width), (rows, width), (width,))
    return [randn(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def check(module, rows: int, width: int, dtype: torch.dtype, bound: float) -> None:
    """Values and gradients of both functions, within the bound of calc_diff."""
    x, residual, weight = (poisoned(t).requires_grad_() for t in inputs(rows, width, dtype))
    dy, dz = randn(rows, width, dtype=dtype, seed=8), randn(rows, width, dtype=dtype, seed=9)

    for y, z in ((module.rms_norm(x, weight, EPS), None), module.add_rms_norm(x, residual, weight, EPS)[::-1]):
        wide = [t.detach().double().requires_grad_() for t in (x, residual, weight)]
        sum_exact = wide[0] if z is None else wide[0] + wide[1]
        rounded = sum_exact + (sum_exact.to(dtype).double() - sum_exact).detach()
        y_exact, _, _ = module.reference(rounded, None, wide[2], EPS)
        assert calc_diff(y, y_exact) <= bound
        given = [x, weight] if z is None else [x, residual, weight]
        wanted = [wide[0], wide[2]] if z is None else wide
        if z is None:
            actual = torch.autograd.grad(y, given, dy)
            expected = torch.autograd.grad(y_exact, wanted, dy.double())
        else:
            assert torch.equal(z, (x + residual).detach())
            actual = torch.autograd.grad((y, z), given, (dy, dz))
            expected = torch.autograd.grad((y_exact, rounded), wanted, (dy.double(), dz.double()))
        for a, e in zip(actual, expected, strict=True):
            assert calc_diff(a, e) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_reference(width: int, dtype: torch.dtype) -> None:
    for rows in (1, 7, 37):
        check(norm(width), rows, width, dtype, DTYPES[dtype])


def test_a_slice_stays_where_it_is() -> None:
    """Rows of a wider tensor, as the latent lies in front of k_rope."""
    x, weight = randn(2, 5, 80), randn(64)
    module = norm(64)
    y = module.rms_norm(x[..., :64], weight, EPS)
    assert calc_diff(y, module.reference(x[..., :64].double(), None, weight.double(), EPS)[0]) <= 1e-13


def test_more_rows_than_programs_of_backward() -> None:
    check(norm(16), 2100, 16, torch.float32, 1e-13)


def test_an_expanded_gradient() -> None:
    x, _, weight = (t.requires_grad_() for t in inputs(5, 64, torch.float32))
    norm(64).rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


FAULTS = {
    "eps outside the root": ("tl.rsqrt(tl.sum(z * z, 1) / D + eps)", "tl.rsqrt(tl.sum(z * z, 1) / D) + eps * 1e4"),
    "columns not masked": (
        "x_stride + offs_d[None, :], mask=mask,",
        "x_stride + offs_d[None, :], mask=(offs_m < num_rows)[:, None],",
    ),
    "dz left out": ("dx += tl.load(dz_ptr", "dx += 0 * tl.load(dz_ptr"),
    "mean of g": ("(tl.sum(g * normed, 1) / D)[:, None]", "(tl.sum(g * normed, 1))[:, None]"),
    "rows skipped": ("tl.num_programs(0) * ROWS)", "tl.num_programs(0) * ROWS * 2)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    old, new = FAULTS[fault]
    module = mutated("rms_norm", old, new, hidden_size=100)
    with pytest.raises(AssertionError):
        for rows, dtype in ((7, torch.bfloat16), (37, torch.float32), (8000, torch.float32)):
            check(module, rows, 100, dtype, DTYPES[dtype])
