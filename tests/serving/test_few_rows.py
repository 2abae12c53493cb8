"""Products and norms of a step's few rows against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from serving.packages import Change, module

MIXED = "infer/decode.py", ("unflatten(0, (2, -1))", "unflatten(0, (-1, 2)).transpose(0, 1)")
TURNED = "infer/decode.py", ("x.T.expand(2, -1, 1)", "x.flip(-1).T.expand(2, -1, 1)")
CROSSED = "infer/decode.py", ("torch.mm(weight, x.T)", "torch.mm(weight, x.flip(0).T)")

SHIFTED = "infer/prepare.py", ("torch.addcmul(self.eps, norm", "torch.addcmul(-self.eps, norm")
SUMMED = "infer/prepare.py", ("value=1 / x.shape[-1]", "value=1 / len(x)")
UNWEIGHTED = "infer/prepare.py", ("(x * inverse_rms * self.weight)", "(x * inverse_rms)")


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_product_of_few_rows_is_that_of_many(count: int, dtype: torch.dtype) -> None:
    for out in (40, 41):  # whether there are two halves
        x, weight = torch.randn(count, 24, dtype=dtype), torch.randn(out, 24, dtype=dtype)
        differences(x, weight)
        differences(torch.randn(24, count, dtype=dtype).T, weight)  # its rows are apart in memory


def differences(x: torch.Tensor, weight: torch.Tensor, change: Change | None = None) -> None:
    found = module("decode", change).linear(x, weight)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, weight))


@pytest.mark.parametrize("change", [MIXED, TURNED, CROSSED])
def test_a_fault_is_seen(change: Change) -> None:
    with pytest.raises(AssertionError):
        for count in (1, 3):
            differences(torch.randn(count, 24), torch.randn(40, 24), change)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_norm_of_few_rows_is_torchs(dtype: torch.dtype) -> None:
    for shape in ((0, 24), (1, 24), (5, 3, 24)):
        norm_differences(torch.randn(shape, dtype=dtype))
    norm_differences(torch.zeros(2, 24, dtype=dtype))
    norm_differences(torch.randn(2, 24, dtype=dtype) * 1e-3)  # where eps counts
    norm_differences(torch.randn(2, 48, dtype=dtype)[:, ::2])


def norm_differences(x: torch.Tensor, change: Change | None = None) -> None:
    norm = torch.nn.RMSNorm(24, eps=1e-5, dtype=x.dtype)
    torch.nn.init.normal_(norm.weight)
    found = module("prepare", change).FewRowNorm(norm)(x)
    torch.testing.assert_close(found, norm(x))


@pytest.mark.parametrize("change", [SHIFTED, SUMMED, UNWEIGHTED])
def test_a_fault_of_a_norm_is_seen(change: Change) -> None:
    with pytest.raises(AssertionError):
        norm_differences(torch.randn(2, 24) * 1e-3, change)
