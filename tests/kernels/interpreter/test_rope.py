"""kernels/rope.py in the interpreter: both layouts against turning complex numbers in float64."""

import pytest
import torch
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}
LAYOUTS = ["interleaved", "half"]


def rope_file(layout: str):
    return kernels(("rope",), attention__rope__layout=layout)[0]


def angles(sequence: int, pairs: int) -> Tensor:
    return 3 * randn(sequence, pairs, seed=7).double()


def table(angle: Tensor, layout: str) -> Tensor:
    """rope [2, S, R] as the model spreads it."""
    cos, sin = angle.cos(), angle.sin()
    if layout == "half":
        spread = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    else:
        spread = tuple(torch.stack(both, -1).flatten(-2) for both in ((cos, cos), (-sin, sin)))
    return poisoned(torch.stack(spread).float())


def turned(x: Tensor, angle: Tensor, layout: str) -> Tensor:
    """x [B, S, heads, R] as complex numbers, times exp(i angle)."""
    x0, x1 = x.chunk(2, -1) if layout == "half" else (x[..., 0::2], x[..., 1::2])
    y = torch.complex(x0, x1) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((y.real, y.imag), -1) if layout == "half" else torch.stack((y.real, y.imag), -1).flatten(-2)


def check(module, layout: str, shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    _, sequence, _, width = shape
    angle = angles(sequence, width // 2)
    rope = table(angle, layout)
    x = poisoned(randn(*shape, dtype=dtype)).requires_grad_()
    dy = randn(*shape, dtype=dtype, seed=1)
    y = module.rotate(x, rope)
    assert y.shape == shape and y.dtype is dtype and y.is_contiguous()
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    exact = turned(wide, angle, layout)
    assert calc_diff(y, exact) <= bound
    assert calc_diff(dx, torch.autograd.grad(exact, wide, dy.double())[0]) <= bound


SHAPES = [(1, 1, 1, 2), (2, 5, 8, 16), (1, 7, 1, 64), (3, 3, 5, 12), (1, 2, 40, 64), (2, 33, 3, 128)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_turning_complex_numbers(layout: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        check(rope_file(layout), layout, shape, dtype, DTYPES[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_too(layout: str) -> None:
    x, angle = randn(2, 5, 3, 16, dtype=torch.float64).requires_grad_(), angles(5, 8)
    rope, module = table(angle, layout), rope_file(layout)
    # The table is float32: 1e-15 is its rounding, squared.
    exact = turned(x, angle, layout)
    assert calc_diff(module.rotate(x, rope), exact) <= 1e-14
    dy = randn(2, 5, 3, 16, seed=1).double()
    (actual,) = torch.autograd.grad(module.rotate(x, rope), x, dy)
    assert calc_diff(actual, torch.autograd.grad(exact, x, dy)[0]) <= 1e-14


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_of_wider_tensors(layout: str) -> None:
    """The tail of a query, the table of a shorter sequence, a gradient that is expanded, keys behind the latent."""
    module = rope_file(layout)
    q, angle = randn(2, 6, 4, 48), angles(9, 8)
    rope = table(angle, layout)[:, :6]
    tail = q[..., 32:].requires_grad_()
    y = module.rotate(tail, rope)
    assert calc_diff(y, turned(tail.double(), angle[:6], layout)) <= 1e-13
    (dx,) = torch.autograd.grad(y.sum(), tail)
    assert calc_diff(dx, turned(torch.ones_like(tail).double(), -angle[:6], layout)) <= 1e-13
    k_rope = randn(2, 6, 80)[..., 64:].unsqueeze(-2)
    assert calc_diff(module.rotate(k_rope, rope), turned(k_rope.double(), angle[:6], layout)) <= 1e-13


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_and_back(layout: str) -> None:
    module = rope_file(layout)
    q, rope = randn(2, 6, 4, 48), table(angles(6, 8), layout)
    before = q.clone()
    tail = q[..., 32:]
    module.launch_rotate(tail, rope, tail, inverse=False)
    assert torch.equal(q[..., :32], before[..., :32])
    assert torch.equal(tail, module.rotate(before[..., 32:], rope))
    module.launch_rotate(tail, rope, tail, inverse=True)
    assert calc_diff(q, before) <= 1e-13


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_outputs_are_the_real_ones(layout: str) -> None:
    arguments = (randn(2, 6, 4, 48)[..., 32:], table(angles(6, 8), layout), False)
    torch.library.opcheck(rope_file(layout)._rotate, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "turned the other way": ("x0 * cos - x1 * sin, x1 * cos + x0 * sin", "x0 * cos + x1 * sin, x1 * cos - x0 * sin"),
    "no sine": ("x1 * cos + x0 * sin", "x1 * cos"),
    "one position for all": ("rope_ptr += position * rope_stride_s", "rope_ptr += 0 * position"),
    "batches of one sequence": ("token // length, token % length", "token // num_tokens, token % length"),
    "backward as forward": ("-sin if INVERSE else sin)\n", "sin)\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_planted_fault_is_caught(layout: str, fault: str) -> None:
    module = mutated("rope", *FAULTS[fault], attention__rope__layout=layout)
    with pytest.raises(AssertionError):
        check(module, layout, (2, 5, 4, 16), torch.float32, 1e-13)
