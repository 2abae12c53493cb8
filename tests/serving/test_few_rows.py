"""Products of a step's few rows against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from serving.packages import Change, module

MIXED = "infer/decode.py", ("unflatten(0, (2, -1))", "unflatten(0, (-1, 2)).transpose(0, 1)")
TURNED = "infer/decode.py", ("x.T.expand(2, -1, 1)", "x.flip(-1).T.expand(2, -1, 1)")
CROSSED = "infer/decode.py", ("torch.mm(weight, x.T)", "torch.mm(weight, x.flip(0).T)")


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
