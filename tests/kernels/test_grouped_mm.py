"""The emitted kernels/grouped_mm.py: values and gradients against float64, tracing, and registration."""

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

SOURCE = Path(__file__).parents[2] / "generated" / "tiny" / "kernels" / "grouped_mm.py"


def load(name: str, path: Path = SOURCE) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # torch.compile looks modules up by name
    spec.loader.exec_module(module)
    return module


gmm = load("grouped_mm_under_test")

WIDTHS = [(16, 24), (13, 11), (16, 11), (13, 24), (1, 1)]  # (K, N), aligned and not
SPLITS = {
    "uneven": [3, 4, 9, 12],
    "empty first": [0, 5, 9, 12],
    "empty middle": [5, 5, 5, 12],
    "empty last": [5, 9, 12, 12],
    "all in first": [12, 12, 12, 12],
    "all in last": [0, 0, 0, 12],
    "no rows": [0, 0, 0, 0],
    "one expert": [12],
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def oracle(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Row by row in float64, independent of the code under test."""
    owner = torch.searchsorted(ends, torch.arange(x.shape[0]), right=True)
    return torch.einsum("mk,mnk->mn", x.double(), weight.double()[owner])


def inputs(
    ends: list[int], k: int, n: int, dtype: torch.dtype = torch.float64, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ends[-1], k, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)
    weight = torch.randn(len(ends), n, k, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)
    return x, weight, torch.tensor(ends, dtype=torch.int32)


def check(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    operands: tuple[Tensor, Tensor, Tensor],
    make_grad: Callable[[Tensor], Tensor] = lambda y: torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype),
) -> None:
    """The product and both gradients agree with the oracle and have the operands' dtype."""
    x, weight, ends = operands
    y = function(x, weight, ends)
    expected = oracle(x, weight, ends)
    dy = make_grad(y.detach())
    actual = (y, *torch.autograd.grad(y, (x, weight), dy))
    wanted = (expected, *torch.autograd.grad(expected, (x, weight), dy.double()))
    tolerance = DTYPES[x.dtype]
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == x.dtype
        torch.testing.assert_close(a.double(), w.double(), atol=tolerance * 8, rtol=tolerance)


@pytest.fixture(autouse=True)
def dirty_allocator() -> None:
    """Leave NaN in freed blocks, so that memory which nobody writes shows."""
    for size in (16, 24, 13, 11):
        blocks = [torch.full((4, size, size), float("nan")) for _ in range(8)]
        del blocks


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    calls: list[int] = []
    kernel = F.grouped_mm

    def counted(*args: Tensor, offs: Tensor) -> Tensor:
        calls.append(1)
        return kernel(*args, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", counted)
    yield calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, n", WIDTHS)
@pytest.mark.parametrize("split", SPLITS)
def test_product_and_gradients(split: str, k: int, n: int, dtype: torch.dtype) -> None:
    check(gmm.grouped_mm, inputs(SPLITS[split], k, n, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, n", WIDTHS)
@pytest.mark.parametrize("split", SPLITS)
def test_references(split: str, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, ends = inputs(SPLITS[split], k, n, dtype)
    check(gmm.reference, (x, weight, ends))
    dy = torch.randn(x.shape[0], n, dtype=dtype)
    wanted = torch.autograd.grad(oracle(x, weight, ends), weight, dy.double())[0].double()
    actual = gmm.reference_dw(dy, x, ends)
    torch.testing.assert_close(actual.double(), wanted, atol=DTYPES[dtype] * 8, rtol=DTYPES[dtype])


@pytest.mark.parametrize("k, n", WIDTHS)
@pytest.mark.parametrize("split", SPLITS)
def test_gradcheck(split: str, k: int, n: int) -> None:
    x, weight, ends = inputs(SPLITS[split], k, n)
    assert gradcheck(lambda x, weight: gmm.grouped_mm(x, weight, ends), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("k, n", WIDTHS)
def test_kernel_runs_exactly_where_rows_are_16_byte_multiples(
    k: int, n: int, dtype: torch.dtype, kernel_calls: list[int]
) -> None:
    check(gmm.grouped_mm, inputs(SPLITS["uneven"], k, n, dtype))
    assert len(kernel_calls) == (3 if k % 8 == 0 and n % 8 == 0 else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_gradients(dtype: torch.dtype) -> None:
    operands = inputs(SPLITS["uneven"], 16, 24, dtype)
    check(gmm.grouped_mm, operands, lambda y: torch.ones((), dtype=dtype).expand_as(y))
    check(gmm.grouped_mm, operands, lambda y: torch.ones(y.shape[0], 1, dtype=dtype).expand_as(y))
    check(gmm.grouped_mm, operands, lambda y: torch.ones(y.shape[::-1], dtype=dtype).T)
    x, weight, ends = operands
    dx, dw = torch.autograd.grad(gmm.grouped_mm(x, weight, ends).sum(), (x, weight))
    rx, rw = torch.autograd.grad(oracle(x, weight, ends).sum(), (x, weight))
    torch.testing.assert_close((dx, dw), (rx, rw), atol=8 * DTYPES[dtype], rtol=DTYPES[dtype])


def test_operands_in_other_layouts() -> None:
    x, weight, ends = inputs(SPLITS["uneven"], 16, 24, torch.float32, grad=False)
    layouts: list[tuple[Tensor, Tensor]] = [
        (torch.cat([x, x], 1)[:, 1:17], weight),  # rows off the 16-byte grid
        (torch.cat([x, x[:, :1]], 1)[:, :16], weight),  # and an odd distance apart
        (x.T.contiguous().T, weight),
        (x[:1].expand_as(x), weight),
        (x, weight.mT.contiguous().mT),  # experts stored transposed
        (x, torch.cat([weight, weight], 2)[:, :, 1:17]),  # experts as slices
        (x, torch.cat([weight, weight[:, :, :1]], 2)[:, :, :16]),
        (x, torch.cat([weight, weight], 1)[:, :24]),
        (x, weight[:1].expand_as(weight)),
        (x, weight[:, :1].expand_as(weight)),
    ]
    for a, b in layouts:
        check(gmm.grouped_mm, (a.detach().requires_grad_(), b.detach().requires_grad_(), ends))


@pytest.mark.parametrize("k, n", [(16, 24), (13, 11)])
def test_gradients_only_where_needed(k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    product, product_dw = gmm._product, gmm._product_dw
    monkeypatch.setattr(gmm, "_product", lambda *args: calls.append("product") or product(*args))
    monkeypatch.setattr(gmm, "_product_dw", lambda *args: calls.append("dw") or product_dw(*args))
    for x_needs, weight_needs, backward in [(True, False, ["product"]), (False, True, ["dw"])]:
        x, weight, ends = inputs(SPLITS["uneven"], k, n, torch.float32, grad=False)
        x.requires_grad_(x_needs)
        weight.requires_grad_(weight_needs)
        calls.clear()
        y = gmm.grouped_mm(x, weight, ends)
        saved = y.grad_fn.saved_tensors
        assert [t is None for t in saved] == [not weight_needs, not x_needs, False]
        y.sum().backward()
        assert calls == ["product", *backward]
        assert (x.grad is not None, weight.grad is not None) == (x_needs, weight_needs)
    x, weight, ends = inputs(SPLITS["uneven"], k, n, torch.float32)
    with torch.no_grad():
        assert not gmm.grouped_mm(x, weight, ends).requires_grad
    assert not gmm.grouped_mm(x.detach(), weight.detach(), ends).requires_grad


@pytest.mark.parametrize("name", ["grouped_mm", "_product_op"])  # eager, and the operator itself
@pytest.mark.parametrize("k, n", [(16, 24), (13, 11)])
def test_double_backward_raises(name: str, k: int, n: int) -> None:
    x, weight, ends = inputs(SPLITS["uneven"], k, n, torch.float32)
    y = getattr(gmm, name)(x, weight, ends)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


def test_empty_groups_where_the_kernel_skips_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repair for Blackwell, with a kernel that leaves NaN like that one."""
    operands = inputs(SPLITS["empty middle"], 16, 24, torch.float32)
    kernel = F.grouped_mm

    def skipping(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        y = kernel(a, b, offs=offs)
        if y.dim() == 3:
            y[1:3] = float("nan")
        return y

    monkeypatch.setattr(F, "grouped_mm", skipping)
    monkeypatch.setattr(gmm, "_kernel_skips_empty_groups", lambda device: True)
    check(gmm.grouped_mm, operands)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, n", [(16, 24), (13, 11)])
def test_meta_and_fake(k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, ends = inputs(SPLITS["uneven"], k, n, dtype, grad=False)
    real = gmm.grouped_mm(x, weight, ends)
    mode = FakeTensorMode()
    for move in (lambda t: t.to("meta"), mode.from_tensor):
        a, b, e = move(x).requires_grad_(), move(weight).requires_grad_(), move(ends)
        y = gmm.grouped_mm(a, b, e)
        assert (y.shape, y.dtype, y.stride()) == (real.shape, real.dtype, real.stride())
        y.sum().backward()
        assert a.grad.shape == x.shape and b.grad.shape == weight.shape and b.grad.dtype == dtype
    with FakeTensorMode():
        y = gmm.grouped_mm(torch.empty(12, k), torch.empty(4, n, k), torch.empty(4, dtype=torch.int32))
        assert y.shape == (12, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, n", [(16, 24), (13, 11)])
def test_compile(k: int, n: int, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gmm.grouped_mm, fullgraph=True, backend="aot_eager")
    for split in ("uneven", "empty middle", "no rows"):
        check(compiled, inputs(SPLITS[split], k, n, dtype))


def test_compile_changing_row_counts_without_recompiling_each() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gmm.grouped_mm, fullgraph=True, backend=counter, dynamic=True)
    for rows in (12, 17, 40):
        check(compiled, inputs([2, 2, 7, rows], 16, 24, torch.float32))
    assert counter.frame_count == 1


def test_compile_is_one_operator_in_the_graph() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(gmm.grouped_mm, fullgraph=True, backend=keep)(*inputs(SPLITS["uneven"], 16, 24))
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert targets == [f"{gmm._NAMESPACE}.grouped_mm.default"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_inductor(dtype: torch.dtype) -> None:
    torch._dynamo.reset()

    def scaled(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        return gmm.grouped_mm(x * 2, weight, ends) / 2

    # The cache on disk knows operators by name only, so it could hold another version's strides.
    with torch._inductor.config.patch(force_disable_caches=True):
        check(torch.compile(scaled, fullgraph=True), inputs(SPLITS["empty middle"], 16, 24, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k, n", [(16, 24), (13, 11)])
@pytest.mark.parametrize("split", ["empty middle", "no rows"])
def test_opcheck(split: str, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, ends = inputs(SPLITS[split], k, n, dtype)
    torch.library.opcheck(gmm._product_op, (x, weight, ends))
    torch.library.opcheck(gmm._product_op, (x.detach(), weight.detach(), ends))
    dy = torch.randn(x.shape[0], n, dtype=dtype)
    torch.library.opcheck(gmm._product_dw_op, (dy, x.detach(), ends))


def scale_product(path: Path, factor: int) -> None:
    text = path.read_text()
    body = "    _, n, k = weight.shape\n"
    assert body in text
    path.write_text(text.replace(body, body + f"    x = x * {factor}\n"))


def test_copies_renames_and_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy keeps its own operators, told apart by a factor planted in its product."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {"a_b.c": 2, "a.b_c": 3, "a.b.c": 5, "a_5f_b.c": 7, "a-b.c": 11, "renamed.kernels.grouped_mm": 13}
    for name, factor in modules.items():
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE, path)
        scale_product(path, factor)
    loaded = {name: importlib.import_module(name) for name in modules}
    assert len({module._NAMESPACE for module in loaded.values()}) == len(modules)

    x, weight, ends = inputs(SPLITS["uneven"], 16, 24, torch.float32, grad=False)
    expected = gmm.reference(x, weight, ends)
    for name, factor in modules.items():
        for function in (loaded[name].grouped_mm, loaded[name]._product_op):
            torch.testing.assert_close(function(x, weight, ends), factor * expected, atol=1e-4, rtol=1e-5)

    path = tmp_path / "renamed" / "kernels" / "grouped_mm.py"
    first = loaded["renamed.kernels.grouped_mm"]
    path.write_text(path.read_text().replace("x = x * 13\n", "x = x * 1700\n"))
    again = importlib.reload(first)
    torch.testing.assert_close(again._product_op(x, weight, ends), 1700 * expected, atol=1e-2, rtol=1e-5)
    check_scaled = torch.compile(again.grouped_mm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(check_scaled(x, weight, ends), 1700 * expected, atol=1e-2, rtol=1e-5)
    del sys.modules["renamed.kernels.grouped_mm"]  # a fresh import, while the first module is still alive
    fresh = importlib.import_module("renamed.kernels.grouped_mm")
    assert fresh is not first
    torch.testing.assert_close(fresh._product_op(x, weight, ends), 1700 * expected, atol=1e-2, rtol=1e-5)
    torch.testing.assert_close(first.grouped_mm(x, weight, ends), 1700 * expected, atol=1e-2, rtol=1e-5)
    check_operands = (x.requires_grad_(), weight.requires_grad_(), ends)
    y = fresh._product_op(*check_operands)
    assert all(grad is not None for grad in torch.autograd.grad(y.sum(), check_operands[:2]))
