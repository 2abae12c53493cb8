"""kernels/fp8_gemm.py in the interpreter: products of codes, against float64."""

from types import ModuleType

import pytest
import torch
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

NAMES = ("fp8_gemm",)
CHANGES = {"precision__linear__kind": "fp8_block"}
E4M3 = torch.float8_e4m3fn
BOUNDS = {torch.float32: 1e-12, torch.bfloat16: 1e-5}
ROWS = [1, 7, 16, 17, 33, 65, 130, 300]  # of every tile, and of more than one
WIDTHS = [(128, 128), (192, 384), (80, 200), (16, 48)]  # N, K: whole in tiles, in blocks, in neither


def gemm() -> ModuleType:
    return kernels(NAMES, **CHANGES)[0]


def codes(rows: int, columns: int, seed: int) -> Tensor:
    return poisoned((60 * randn(rows, columns, seed=seed)).to(E4M3))


def scales(rows: int, columns: int, seed: int) -> Tensor:
    """Scales of blocks differ by up to a factor of twenty."""
    generator = torch.Generator().manual_seed(seed)
    return poisoned(0.05 + torch.rand(rows, -(-columns // 128), generator=generator))


def exact(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """a @ b.T in float64: an independent formula, element by element."""

    def decoded(q: Tensor, scale: Tensor) -> Tensor:
        rows = torch.arange(len(q)) // (1 if len(scale) == len(q) else 128)
        return q.double() * scale.double()[rows[:, None], torch.arange(q.shape[1])[None, :] // 128]

    return decoded(a, a_scale) @ decoded(b, b_scale).T


def check_multiply(module: ModuleType, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Forward's product; and dgrad's, for which the scales of the weight come as a transposed view."""
    a, a_scale, b = codes(rows, k, 1), scales(rows, k, 2), codes(n, k, 3)
    b_scale = scales(-(-n // 128), k, 4)
    transposed = scales(-(-k // 128), n, 5).mT
    for given in (b_scale, transposed):
        c = module.multiply(a, a_scale, b, given, dtype)
        assert c.dtype is dtype and c.is_contiguous()
        assert calc_diff(c, exact(a, a_scale, b, given)) <= BOUNDS[dtype]


def check_multiply_along_rows(module: ModuleType, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, a_scale, b, b_scale = codes(n, rows, 1), scales(n, rows, 2), codes(k, rows, 3), scales(k, rows, 4)
    c = module.multiply_along_rows(a, a_scale, b, b_scale, dtype)
    assert c.dtype is dtype and c.is_contiguous()
    assert calc_diff(c, exact(a, a_scale, b, b_scale)) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", ROWS)
def test_multiply(rows: int, dtype: torch.dtype) -> None:
    for n, k in WIDTHS:
        check_multiply(gemm(), rows, n, k, dtype)


def test_more_rows_than_a_group() -> None:
    check_multiply(gemm(), 9 * 128 + 3, 192, 128, torch.bfloat16)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [128, 384])
def test_multiply_along_rows(rows: int, dtype: torch.dtype) -> None:
    for n, k in WIDTHS:
        check_multiply_along_rows(gemm(), rows, n, k, dtype)


def test_the_reference_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CPUs."""
    module = gemm()
    monkeypatch.setattr(module, "runs_triton", lambda x: False)
    for n, k in WIDTHS:
        check_multiply(module, 37, n, k, torch.float32)
        check_multiply_along_rows(module, 256, n, k, torch.float32)


FAULTS = {
    "scale of a row dropped": ("acc += tl.dot(a, b.T) * scale[:, None]", "acc += tl.dot(a, b.T)"),
    "scale dropped where few": ("acc += tl.dot(b, a.T) * scale[None, :]", "acc += tl.dot(b, a.T)"),
    "scale of the first block": ("tl.load(a_scale_ptr + block * num_rows,", "tl.load(a_scale_ptr,"),
    "scale of the first column": ("pid_n * BLOCK_N // BLOCK * b_scale_stride_n", "0 * b_scale_stride_n"),
    "scales of the weight not transposed": ("+ block * b_scale_stride_k", "+ block"),
    "steps not added up": ("acc += tl.dot(b, a.T)", "acc = tl.dot(b, a.T)"),
    "depth not masked": (
        "b = tl.load(b_ptr + block * BLOCK, mask=(offs_k < K - block * BLOCK)[None, :], other=0.0)",
        "b = tl.load(b_ptr + block * BLOCK)",
    ),
    "scale of dy in wgrad": ("* a_scale[:, None] * b_scale", "* b_scale"),
    "scale of x in wgrad": ("a_scale[:, None] * b_scale[None, :]", "a_scale[:, None]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    faulty = mutated("fp8_gemm", *FAULTS[fault], **CHANGES)
    with pytest.raises(AssertionError):
        check_multiply(faulty, 7, 192, 200, torch.float32)
        check_multiply(faulty, 130, 192, 384, torch.float32)
        check_multiply_along_rows(faulty, 256, 80, 48, torch.float32)
