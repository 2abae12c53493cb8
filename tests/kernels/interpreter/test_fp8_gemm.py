"""kernels/fp8_gemm.py in the interpreter: products of codes, and linear layers made of them, against plain PyTorch."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with
from torch import Tensor

NAMES = ("fp8_quantize", "fp8_gemm")
CHANGES = {"precision__linear__kind": "fp8_block"}
E4M3 = torch.float8_e4m3fn
BOUNDS = {torch.float32: 1e-12, torch.bfloat16: 1e-5}
ROWS = [1, 7, 16, 17, 33, 65, 130, 300]  # of every tile, and of more than one
WIDTHS = [(128, 128), (192, 384), (80, 200), (16, 48)]  # N, K: whole in tiles, in blocks, in neither


def modules() -> tuple[ModuleType, ModuleType]:
    quantize, gemm = kernels(NAMES, **CHANGES)
    return quantize, gemm


def mutated(old: str, new: str) -> ModuleType:
    """fp8_gemm with one planted fault."""
    files = printed(NAMES, spec_with("tiny", {key.replace("__", "."): value for key, value in CHANGES.items()}))
    assert files["fp8_gemm.py"].count(old) == 1, f"{old!r} stands {files['fp8_gemm.py'].count(old)} times"
    files["fp8_gemm.py"] = files["fp8_gemm.py"].replace(old, new)
    return package(files, NAMES)[1]


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


def check_multiply(gemm: ModuleType, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Forward's product; and dgrad's, for which the scales of the weight come as a transposed view."""
    a, a_scale, b = codes(rows, k, 1), scales(rows, k, 2), codes(n, k, 3)
    b_scale = scales(-(-n // 128), k, 4)
    transposed = scales(-(-k // 128), n, 5).mT
    for given in (b_scale, transposed):
        c = gemm.multiply(a, a_scale, b, given, dtype)
        assert c.dtype is dtype and c.is_contiguous()
        assert calc_diff(c, exact(a, a_scale, b, given)) <= BOUNDS[dtype]


def check_multiply_along_rows(gemm: ModuleType, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, a_scale, b, b_scale = codes(n, rows, 1), scales(n, rows, 2), codes(k, rows, 3), scales(k, rows, 4)
    c = gemm.multiply_along_rows(a, a_scale, b, b_scale, dtype)
    assert c.dtype is dtype and c.is_contiguous()
    assert calc_diff(c, exact(a, a_scale, b, b_scale)) <= BOUNDS[dtype]


def check_linear(gemm: ModuleType, rows: int, n: int, k: int) -> None:
    """Forward and both gradients, quantised by the reference and multiplied in float64."""
    quantize, _ = modules()
    x, w, dy = (randn(*s, dtype=torch.bfloat16, seed=i) for i, s in enumerate(((rows, k), (n, k), (rows, n))))
    w = (w * k**-0.5).requires_grad_()
    y = gemm.fp8_linear(x.requires_grad_(), w)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    x, w = x.detach(), w.detach()
    weight, weight_scale = quantize.reference_blocks(w)
    expected = (
        exact(*quantize.reference_rows(x), weight, weight_scale),
        exact(*quantize.reference_rows(dy), weight.T, weight_scale.T),
        exact(*quantize.reference_rows(dy.T), *quantize.reference_rows(x.T)),
    )
    wide = (x.double() @ w.double().T, dy.double() @ w.double(), dy.double().T @ x.double())
    for actual, codes_exact, unquantised in zip((y, dx, dw), expected, wide, strict=True):
        assert actual.dtype is torch.bfloat16
        assert calc_diff(actual, codes_exact) <= BOUNDS[torch.bfloat16]
        assert calc_diff(actual, unquantised) <= 1e-3  # what three bits of mantissa cost


def check_shared_input(gemm: ModuleType) -> None:
    x, *weights = (
        randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(((2, 20, 128), (48, 128), (80, 128)))
    )
    together = gemm.fp8_linears(x, weights)
    apart = [gemm.fp8_linear(x, weight) for weight in weights]
    dys = [randn(*y.shape, seed=5) for y in together]
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        torch.autograd.grad(together, (x, *weights), dys), torch.autograd.grad(apart, (x, *weights), dys), strict=True
    ):
        assert a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", ROWS)
def test_multiply(rows: int, dtype: torch.dtype) -> None:
    for n, k in WIDTHS:
        check_multiply(modules()[1], rows, n, k, dtype)


def test_more_rows_than_a_group() -> None:
    check_multiply(modules()[1], 9 * 128 + 3, 192, 128, torch.bfloat16)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [128, 384])
def test_multiply_along_rows(rows: int, dtype: torch.dtype) -> None:
    for n, k in WIDTHS:
        check_multiply_along_rows(modules()[1], rows, n, k, dtype)


@pytest.mark.parametrize("rows", [1, 37, 256])
def test_linear(rows: int) -> None:
    for n, k in WIDTHS[:3]:
        check_linear(modules()[1], rows, n, k)


@pytest.mark.parametrize("factor", [1e-3, 1e-6, 1e-9])
def test_small_gradients(factor: float) -> None:
    """Those of a loss that is a mean over many tokens: as good as those of any other."""
    _, gemm = modules()
    x, w, dy = (randn(*shape, seed=i) for i, shape in enumerate(((40, 128), (80, 128), (40, 80))))
    y = gemm.fp8_linear(x.requires_grad_(), w.requires_grad_())
    for actual, expected in zip(torch.autograd.grad(y, (x, w), dy * factor), (dy @ w, dy.T @ x), strict=True):
        assert calc_diff(actual / factor, expected) <= 1e-3


def test_layers_that_share_an_input() -> None:
    """One quantised copy for all, and the sum of the gradients that reach x."""
    check_shared_input(modules()[1])


def saved_by(run: object, weights: list[Tensor]) -> Iterator[Tensor]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run()  # type: ignore[operator]
    return (t for t in kept if all(t is not weight and t.data_ptr() != weight.data_ptr() for weight in weights))


def test_what_is_saved() -> None:
    """The codes of x transposed and their scales, once for two layers: 1 + 4 / 128 bytes an element."""
    _, gemm = modules()
    x, *weights = (randn(*s, dtype=torch.bfloat16).requires_grad_() for s in ((256, 128), (48, 128), (80, 128)))
    kept = list(saved_by(lambda: gemm.fp8_linears(x, weights), weights))
    assert sum(t.nbytes for t in kept) == x.numel() * (1 + 4 / 128)


def test_without_gradients() -> None:
    """Inference quantises along K alone, and may keep the codes of its weights."""
    quantize, gemm = modules()
    x, w = randn(9, 128, dtype=torch.bfloat16), randn(80, 128, dtype=torch.bfloat16, seed=1).requires_grad_()
    with torch.no_grad():
        y = gemm.fp8_linear(x, w)
        assert torch.equal(y, gemm.quantized_linear(x, *quantize.quantize_blocks(w)))
    assert torch.equal(y, gemm.fp8_linear(x, w))


def test_the_reference_emulates_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CPUs: forward and gradients as the kernels have them."""
    quantize, gemm = modules()
    for module in (quantize, gemm):
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    for n, k in WIDTHS:
        check_linear(gemm, 37, n, k)
        check_multiply(gemm, 37, n, k, torch.float32)
        check_multiply_along_rows(gemm, 256, n, k, torch.float32)


def test_no_rows_at_all() -> None:
    _, gemm = modules()
    x, w = randn(1, 0, 128).requires_grad_(), randn(48, 128).requires_grad_()
    y = gemm.fp8_linear(x, w)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert y.shape == (1, 0, 48) and dx.shape == x.shape and not dw.any()


def test_operators() -> None:
    """Schemas, and what FakeTensor is told, are those of the real ones."""
    quantize, gemm = modules()
    x, dy = randn(37, 200, dtype=torch.bfloat16), randn(37, 80, dtype=torch.bfloat16)
    weights = [randn(80, 200, dtype=torch.bfloat16), randn(80, 200)]
    _, q_t, scale_t = gemm._training(x, weights)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(gemm._linear, (x, weights), test_utils=checks)
    torch.library.opcheck(gemm._training, (x, weights), test_utils=checks)
    # Schemas are checked by comparing operands with copies, for which PyTorch lacks float8 on CPUs.
    torch.library.opcheck(gemm._backward, ([dy, dy], q_t, scale_t, weights), test_utils=checks[1])
    torch.library.opcheck(gemm.quantized_linear, (x, *quantize.quantize_blocks(weights[0])), test_utils=checks[1])


FAULTS = {
    "scale of a row dropped": ("c += tl.dot(a, b.T) * scale[:, None]", "c += tl.dot(a, b.T)"),
    "scale dropped where few": ("c += tl.dot(b, a.T) * scale[None, :]", "c += tl.dot(b, a.T)"),
    "scale of the first block": ("tl.load(a_scale_ptr + block) * tl.load", "tl.load(a_scale_ptr) * tl.load"),
    "scale of the first column": ("first_column // BLOCK * b_scale_stride_n", "0 * b_scale_stride_n"),
    "scales of the weight not transposed": ("+ block * b_scale_stride_k", "+ block"),
    "steps not added up": ("c += tl.dot(b, a.T)", "c = tl.dot(b, a.T)"),
    "depth not masked": (
        "b = tl.load(b_ptr + block * BLOCK, mask=(k < K - block * BLOCK)[None, :], other=0.0)",
        "b = tl.load(b_ptr + block * BLOCK)",
    ),
    "scale of dy in wgrad": ("* a_scale[:, None] * b_scale", "* b_scale"),
    "scale of x in wgrad": ("a_scale[:, None] * b_scale[None, :]", "a_scale[:, None]"),
    "gradient of the last layer alone": ("sum(parts[1:], start=parts[0])", "parts[-1]"),
    "dgrad with untransposed scales": ("weight_q_t, scale.mT, dy.dtype", "weight_q_t, scale, dy.dtype"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    gemm = mutated(*FAULTS[fault])
    with pytest.raises(AssertionError):
        check_multiply(gemm, 7, 192, 200, torch.float32)
        check_multiply(gemm, 130, 192, 384, torch.float32)
        check_multiply_along_rows(gemm, 256, 80, 48, torch.float32)
        check_linear(gemm, 37, 192, 384)
        check_shared_input(gemm)
