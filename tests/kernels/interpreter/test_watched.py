"""The watch over the interpreter's launches sees what it is for. In our own kernels: see test_inputs.py."""

import pytest
import torch
import triton
import triton.language as tl
from kernels.lab import randn
from kernels.watched import OutOfRange, Race, watched


@triton.jit
def shift_kernel(x_ptr, y_ptr, by, SIZE: tl.constexpr, ALL: tl.constexpr):
    """y[i] = x[i + by], a block of each program; SIZE elements are real."""
    i = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(y_ptr + i, tl.load(x_ptr + i + by, mask=(i < SIZE) | ALL), mask=i < SIZE)


@triton.jit
def total_kernel(x_ptr, y_ptr):
    tl.store(y_ptr, tl.load(y_ptr) + tl.load(x_ptr + tl.program_id(0)))


def test_what_lies_beside_a_tensor_is_out_of_range() -> None:
    memory = randn(64)
    x, y = memory[8:14], torch.zeros(6)
    with watched() as launched:
        shift_kernel[(2,)](x, y, 0, SIZE=6, ALL=False)
    assert torch.equal(x, y) and launched == {"shift_kernel"}
    for by, every in ((1, False), (-1, False), (0, True)):
        with pytest.raises(OutOfRange, match=r"shift_kernel, program . reads"), watched():
            shift_kernel[(2,)](x, y, by, SIZE=6, ALL=every)
    with pytest.raises(OutOfRange, match="writes 2 elements of no tensor"), watched():
        shift_kernel[(2,)](x, y[:4], 0, SIZE=6, ALL=False)


def test_every_test_is_guarded() -> None:
    """The fault is raised before memory is touched."""
    memory = torch.zeros(64)
    with pytest.raises(OutOfRange, match="shift_kernel, program 1 writes 2 elements of no tensor"):
        shift_kernel[(2,)](randn(6), memory[:4], 0, SIZE=6, ALL=False)
    assert memory[:4].all() and not memory[4:].any()


def test_programs_that_meet_are_a_race() -> None:
    x = randn(8)
    with pytest.raises(Race, match="program 1 reads what program 0 writes"), watched():
        total_kernel[(6,)](x, torch.zeros(1))
    with pytest.raises(Race, match=r"program 1 \w+ what program 0"), watched():
        shift_kernel[(2,)](x, x, 2, SIZE=6, ALL=False)
    with watched():
        total_kernel[(1,)](x, torch.zeros(1))


@triton.jit
def square_kernel(x_ptr, y_ptr, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, tl.dot(x, x, input_precision=PRECISION))


def test_products_that_a_gpu_would_round_are_refused() -> None:
    x, y = randn(16, 16), torch.zeros(16, 16)
    square_kernel[(1,)](x, y, PRECISION="ieee")
    assert torch.allclose(y, x @ x, atol=1e-5)
    with pytest.raises(AssertionError, match="TF32"), watched():
        square_kernel[(1,)](x, y, PRECISION=None)
