"""kernels/fp8_experts.py in the interpreter: products of codes against float64, and the layer made of them."""

import pytest
import torch
from kernels.interpreter.test_experts import CASES, LIMIT, arguments, poisoned_ids
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with, with_fault
from torch import Tensor

FILES = (
    "fp8_codes", "fp8_quantize", "expert_dispatch", "grouped_gemm", "grouped_gemm_backward",
    "fp8_grouped_gemm", "fp8_grouped_gemm_backward", "fp8_experts",
)  # fmt: skip
CHANGES = {"precision.linear.kind": "fp8_block"}
RECODED = 1e-6  # where a sum that differs in its last bit is rounded to the next code
QUANTIZED = 3e-3  # against no quantization at all: three bits of mantissa
NARROW = 2e-5  # the same, results rounded to bfloat16
NAMES = [name for name in CASES if not name.endswith(("the first", "row tiles", "a tile"))]


def modules(**more: object):
    return kernels(FILES, **{key.replace(".", "__"): value for key, value in CHANGES.items()}, **more)


def quantized_formula(
    files, given: list[Tensor], experts: Tensor, dy: Tensor, limit: float = float("inf")
) -> list[Tensor]:
    """y and the five gradients as the recipe defines them, token by token in float64.

    The preactivation and its gradient are rounded to the type of x, which moves codes.
    """
    tokens, weights, gate_up, down, shared = (x.double() for x in given)
    inner, width = gate_up.shape[1] // 2, gate_up.shape[2]
    codes, quantize, *_ = files

    def rows(x: Tensor) -> Tensor:
        return codes.dequantize(*quantize.reference_rows(x.float())).double()

    def rounded(x: Tensor) -> Tensor:
        return x.to(dy.dtype).double()

    def blocks(w: Tensor) -> Tensor:
        return codes.dequantize(*quantize.reference_blocks(w.float())).double()

    apart = blocks(gate_up.view(-1, inner, width)).view(gate_up.shape)
    q_gate_up, q_down, q_tokens, q_dy = blocks(gate_up), blocks(down), rows(tokens), rows(dy)
    y, dtokens, dweights = shared.clone(), torch.zeros_like(tokens), torch.zeros_like(weights)
    dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
    for t, ids in enumerate(experts.tolist()):
        for k, e in enumerate(ids):
            gate, up = rounded(apart[e] @ q_tokens[t]).chunk(2)
            gate_slope, up_slope = gate <= limit, up.abs() <= limit
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            sigmoid = gate.sigmoid()
            swiglu = gate * sigmoid * up
            h = swiglu * weights[t, k]
            y[t] += q_down[e] @ rows(h[None])[0]
            dh = q_dy[t] @ q_down[e]
            dweights[t, k] = dh @ swiglu
            dh = dh * weights[t, k]
            dgate = gate_slope * dh * up * sigmoid * (1 + gate * (1 - sigmoid))
            dpre = rounded(torch.cat((dgate, up_slope * dh * gate * sigmoid)))
            dtokens[t] += rows(dpre[None])[0] @ q_gate_up[e]
            dgate_up[e] += torch.outer(dpre, tokens[t])
            ddown[e] += torch.outer(dy[t].double(), h)
    return [y, dtokens, dweights, dgate_up, ddown, dy.double()]


def run(files, given: list[Tensor], experts: Tensor, num_experts: int, dy: Tensor) -> list[Tensor]:
    metadata = (poisoned_ids(x) for x in files[2].reference_sort(experts, num_experts))
    given = [poisoned(x).requires_grad_() for x in given]
    y = files[-1].fp8_routed_experts(*given[:2], *metadata, *given[2:])
    return [y.detach(), *torch.autograd.grad(y, given, dy)]


def check(
    files, experts: Tensor, num_experts: int, width: int, inner: int, dtype: torch.dtype, limit: float = float("inf")
) -> None:
    given = arguments(experts, num_experts, width, inner, dtype)
    dy = randn(len(experts), width, dtype=dtype, seed=6)
    expected = quantized_formula(files, given, experts, dy, limit)
    for a, e in zip(run(files, given, experts, num_experts, dy), expected, strict=True):
        assert calc_diff(a, e) <= (RECODED if dtype is torch.float32 else NARROW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", NAMES)
def test_equals_the_quantized_formula(case: str, dtype: torch.dtype) -> None:
    check(modules(), *CASES[case], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamped(dtype: torch.dtype) -> None:
    check(modules(ffn__swiglu_limit=LIMIT), *CASES["odd sizes"], dtype, LIMIT)
    with pytest.raises(AssertionError):
        check(modules(), *CASES["odd sizes"], dtype, LIMIT)


def test_several_blocks_and_tiles() -> None:
    """More than one block along every dim, the last one narrow; experts with more rows than a tile."""
    experts = torch.arange(330).view(165, 2) % 2
    check(modules(), experts, 2, 300, 200, torch.float32)


def test_is_close_to_no_quantization() -> None:
    experts, num_experts, *_ = CASES["odd sizes"]
    given, dy = arguments(experts, num_experts, 160, 144, torch.float32), randn(len(experts), 160, seed=6)
    dispatch, *_, op = kernels(("expert_dispatch", "grouped_gemm", "grouped_gemm_backward", "experts"))
    wide = [x.double().requires_grad_() for x in given]
    exact = op.routed_experts(*wide[:2], *dispatch.reference_sort(experts, num_experts), *wide[2:])
    expected = [exact, *torch.autograd.grad(exact, wide, dy.double())]
    for a, e in zip(run(modules(), given, experts, num_experts, dy), expected, strict=True):
        assert calc_diff(a, e) <= QUANTIZED


def test_the_references_equal_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CPUs run."""
    files = modules()
    for file in files:
        monkeypatch.setattr(file, "runs_triton", lambda x: False, raising=False)
    for case in ("odd sizes", "empty experts between"):
        check(files, *CASES[case], torch.float32)


def test_fake_results_are_like_real_ones() -> None:
    *_, op = files = modules()
    experts, num_experts, width, inner = CASES["odd sizes"]
    tokens, weights, gate_up, down, shared = arguments(experts, num_experts, width, inner, torch.bfloat16)
    metadata = files[2].reference_sort(experts, num_experts)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(op._forward, (tokens, weights, *metadata, gate_up, down, shared, True), test_utils=utils)
    pre = randn(33, 74, dtype=torch.bfloat16)
    torch.library.opcheck(op._backward, (shared, tokens, weights, *metadata, gate_up, down, pre), test_utils=utils)


FAULTS = {
    "scale of the other weight": (
        "tl.load(w_scale_ptr + num_blocks * num_steps + step)",
        "tl.load(w_scale_ptr + step)",
    ),
    "one scale for all steps": (
        "scale = tl.load(x_scale_ptrs + step * x_scale_stride_k) *",
        "scale = tl.load(x_scale_ptrs) *",
    ),
    "scale of another slot's token": (
        "x_scale_ptr + step * num_tokens + token)",
        "x_scale_ptr + step * num_tokens + 0 * token)",
    ),
    "steps of up not accumulated": ("up += tl.dot(x, w) * (scale *", "up = tl.dot(x, w) * (scale *"),
    "the last step left out": ("in tl.range(0, num_steps)", "in tl.range(0, num_steps - 1)"),
    "scales of other blocks": (
        "ends, *codes_of(gate_up_proj, transposed_blocks), dy.dtype",
        "ends, *(lambda codes, scale: (codes, scale.flip(1)))(*codes_of(gate_up_proj, transposed_blocks)), dy.dtype",
    ),
    "half of dw": ("dw += _columns", "dw = _columns"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    files = with_fault(printed(FILES, spec_with("tiny", CHANGES)), *FAULTS[fault])
    experts, num_experts, *_ = CASES["odd sizes"]
    with pytest.raises(AssertionError):
        check(package(files, FILES), experts, num_experts, 160, 136, torch.float32)
