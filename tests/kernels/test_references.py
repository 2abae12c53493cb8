"""What `dsc bench` compares with, on a CPU: PyTorch's products do the same, and references take little memory."""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels.lab import calc_diff, dims, kernels, mutated
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsc.compiler.bench.case import Case
from dsc.compiler.bench.sizes import SIZES

FP8 = {"precision__linear__kind": "fp8_block"}
TOKENS = 40


def cases(name: str, module: ModuleType, **changes: str) -> Iterator[Case]:
    torch.manual_seed(0)
    sizes = SIZES[name](dims("tiny", **changes))
    yield from import_module(f"dsc.compiler.bench.cases.{name}").cases(module, sizes, TOKENS, "cpu")


@pytest.mark.parametrize(("name", "columns"), [("grouped_gemm", 3), ("grouped_gemm_backward", 2)])
def test_pytorch_s_products_of_experts_are_the_references(name: str, columns: int) -> None:
    """The column of the library times the same work: gate_up with its gather, SwiGLU and routing weights."""
    compared = 0
    for case in cases(name, kernels((name,))[0]):
        if case.library is not None:
            expected: Any = case.reference()
            expected = expected if isinstance(expected, Tensor) else expected[0]
            assert calc_diff(case.library(), expected) <= 1e-4, case.name  # type: ignore[arg-type]
            compared += 1
    assert compared == columns


class Largest(TorchDispatchMode):
    """Within, the bytes of the largest tensor that an operator makes; views make none."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


def check_memory(name: str, module: ModuleType) -> None:
    """No larger than rows of the result in float32 or two matrices of one expert, where all have many times that."""
    num_experts, top_k, width, inner = SIZES[name](dims("tiny", **FP8))
    allowed = 4 * max(TOKENS * top_k * max(2 * inner, width), 2 * inner * width)
    assert 4 * num_experts * inner * width >= 4 * allowed
    for case in cases(name, module, **FP8):
        with Largest() as largest:
            case.reference()
        assert largest.nbytes <= allowed, (case.name, largest.nbytes, allowed)


@pytest.mark.parametrize("name", ["fp8_grouped_gemm", "fp8_grouped_gemm_backward"])
def test_experts_are_dequantized_one_at_a_time(name: str) -> None:
    check_memory(name, kernels((name,), **FP8)[0])


def test_all_experts_at_once_are_noticed() -> None:
    all_at_once = ("x_scale.tensor_split(starts), w, w_scale", "x_scale.tensor_split(starts), w.float(), w_scale")
    with pytest.raises(AssertionError):
        check_memory("fp8_grouped_gemm", mutated("fp8_grouped_gemm", *all_at_once, **FP8))
