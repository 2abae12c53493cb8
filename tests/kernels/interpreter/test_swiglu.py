"""kernels/swiglu.py in the interpreter: forward and backward against the plain formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn

DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}


def check(module, shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    gate, up = (poisoned(3 * randn(*shape, dtype=dtype, seed=seed)).requires_grad_() for seed in (0, 1))
    dy = randn(*shape, dtype=dtype, seed=2)
    y = module.swiglu(gate, up)
    assert y.shape == shape and y.dtype is dtype and y.is_contiguous()
    gradients = torch.autograd.grad(y, (gate, up), dy)

    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    y_exact = F.silu(wide[0]) * wide[1]
    assert calc_diff(y, y_exact) <= bound
    for actual, exact in zip(gradients, torch.autograd.grad(y_exact, wide, dy.double()), strict=True):
        assert calc_diff(actual, exact) <= bound


@pytest.fixture(scope="module")
def swiglu():
    return kernels(("swiglu",))[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_formula(swiglu, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (1, 4100), (7, 100), (37, 256), (2, 3, 2048), (65, 3000)):
        check(swiglu, shape, dtype, DTYPES[dtype])


def test_the_reference_is_the_formula(swiglu) -> None:
    gate, up, dy = (randn(5, 70, dtype=torch.float64, seed=seed).requires_grad_(seed < 2) for seed in range(3))
    y = F.silu(gate) * up
    assert calc_diff(swiglu.reference(gate, up), y) <= 1e-15
    for actual, exact in zip(
        swiglu.reference_backward(dy, gate, up), torch.autograd.grad(y, (gate, up), dy), strict=True
    ):
        assert calc_diff(actual, exact) <= 1e-15


def test_far_from_zero(swiglu) -> None:
    """sigmoid saturates without infinities in between."""
    gate = torch.tensor([[-200.0, -90, -30, 30, 90, 200]]).requires_grad_()
    up = torch.ones(1, 6)
    y = swiglu.swiglu(gate, up)
    (dgate,) = torch.autograd.grad(y.sum(), gate)
    assert torch.allclose(y, gate.clamp(min=0), atol=1e-10) and torch.allclose(dgate, (gate > 0).float(), atol=1e-10)


def test_halves_of_one_tensor(swiglu) -> None:
    both = poisoned(randn(2, 5, 128)).requires_grad_()
    gate, up = both.chunk(2, -1)
    y = swiglu.swiglu(gate, up)
    assert calc_diff(y, F.silu(gate.double()) * up.double()) <= 1e-13
    y.sum().backward()  # an expanded gradient
    wide = both.detach().double().requires_grad_()
    (F.silu(wide[..., :64]) * wide[..., 64:]).sum().backward()
    assert calc_diff(both.grad, wide.grad) <= 1e-13


def test_fake_outputs_are_the_real_ones(swiglu) -> None:
    gate, up = randn(2, 5, 128, dtype=torch.bfloat16).chunk(2, -1)
    for op, arguments in ((swiglu.swiglu, (gate, up)), (swiglu._backward, (gate, gate, up))):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "no gate": ("(silu * up)", "silu"),
    "the slope of sigmoid": ("gate * s, s * (1 + gate * (1 - s))", "gate * s, s * (1 - s)"),
    "dgate without up": ("(dy * up * slope)", "(dy * slope)"),
    "up under another stride": ("up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)\n    silu, _",
                                "up_ptr + row * 0 + column, mask=mask, other=0.0).to(tl.float32)\n    silu, _"),
    "rounded between": ("return gate * s, s *", "return (gate * s).to(tl.bfloat16).to(tl.float32), s *"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    module = mutated("swiglu", *FAULTS[fault])
    with pytest.raises(AssertionError):
        for dtype, bound in DTYPES.items():
            check(module, (7, 100), dtype, bound)
