"""kernels/linear_cross_entropy.py in the interpreter: loss and gradients against plain PyTorch in float64."""

from functools import cache
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import calc_diff, kernels, mutated, package, poisoned, printed, randn, spec_with
from kernels.watched import watched
from torch import Tensor

NAME = "linear_cross_entropy"
DTYPES = {torch.float32: 1e-11, torch.bfloat16: 1e-5}
SIZES = {"vocab_size": 600, "hidden_size": 100}  # neither is whole in tiles
Z_LOSS = 0.01


def kernel(**sizes: int) -> ModuleType:
    (module,) = kernels((NAME,), **(sizes or SIZES))
    return module


@cache
def kernel_with_z_loss() -> ModuleType:
    return package(printed((NAME,), spec_with("tiny", {**SIZES, "z_loss": Z_LOSS})), (NAME,))[0]


def inputs(module: ModuleType, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of variance four; the first labels are the first and the last column, every fifth is left out."""
    width, vocab = module.HIDDEN_SIZE, module.VOCAB_SIZE
    hidden = poisoned(2 * randn(tokens, width, dtype=dtype, seed=1))
    weight = poisoned((randn(vocab, width, seed=2) * width**-0.5).to(dtype))
    labels = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(3))
    labels[4::5] = -100
    labels[0] = vocab - 1
    labels[1:2] = 0
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def exact_loss(hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0) -> Tensor:
    """As generated models have it: the mean over the labels that are not -100, zero if all are."""
    logits = hidden @ weight.T
    penalty = z_loss * (logits.logsumexp(-1).square() * (labels != -100)).sum()
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") + penalty
    return total / (labels != -100).sum().clamp(min=1)


def check(module: ModuleType, tokens: int, dtype: torch.dtype, bound: float, z_loss: float = 0.0) -> None:
    hidden, weight, labels = inputs(module, tokens, dtype)
    loss = module.linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype is torch.promote_types(dtype, torch.float32)
    actual = torch.autograd.grad(loss, (hidden, weight), torch.tensor(-3.0, dtype=loss.dtype))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact = exact_loss(*wide, labels, z_loss)
    expected = torch.autograd.grad(exact, wide, torch.tensor(-3.0, dtype=torch.float64))
    assert calc_diff(loss, exact) <= 1e-12  # float32 inside, whatever the type of the operands
    for gradient, exactly, of in zip(actual, expected, (hidden, weight), strict=True):
        assert gradient.dtype is dtype and gradient.stride() == of.stride()
        assert calc_diff(gradient, exactly) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_equals_plain_pytorch(tokens: int, dtype: torch.dtype) -> None:
    check(kernel(), tokens, dtype, DTYPES[dtype])


@pytest.mark.parametrize("sizes", [{"vocab_size": 512, "hidden_size": 128}, {"vocab_size": 257, "hidden_size": 16}])
def test_other_sizes(sizes: dict[str, int]) -> None:
    for dtype, bound in DTYPES.items():
        check(kernel(**sizes), 130, dtype, bound)


def test_more_tokens_than_a_group() -> None:
    check(kernel(vocab_size=257, hidden_size=16), 17 * 128 + 5, torch.bfloat16, DTYPES[torch.bfloat16])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [(4096, 256), (128, 600), (100, 512)])
def test_gradients_in_chunks(chunks: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of the vocabulary, of the tokens, and of both, each with a last one that is smaller."""
    for name, size in zip(("TOKEN_CHUNK", "VOCAB_CHUNK"), chunks, strict=True):
        monkeypatch.setattr(kernel(), name, size)
    check(kernel(), 300, dtype, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_z_loss(dtype: torch.dtype) -> None:
    check(kernel_with_z_loss(), 70, dtype, DTYPES[dtype], Z_LOSS)


def test_z_loss_leaves_no_trace_where_it_is_not_asked_for() -> None:
    files = printed((NAME,), spec_with("tiny", SIZES))
    assert "Z_LOSS" not in files[f"{NAME}.py"]


def test_the_references_against_autograd() -> None:
    """What runs on CPUs, here in float64."""
    for module, z_loss in ((kernel(), 0.0), (kernel_with_z_loss(), Z_LOSS)):
        check(module, 23, torch.float64, 1e-15, z_loss)


def test_no_label_at_all() -> None:
    hidden, weight, labels = inputs(kernel(), 9, torch.bfloat16)
    loss = kernel().linear_cross_entropy(hidden, weight, labels.fill_(-100))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_no_token_at_all() -> None:
    """Multi-token prediction of sequences of one token."""
    hidden, weight, labels = (t[:0] if i != 1 else t for i, t in enumerate(inputs(kernel(), 2, torch.bfloat16)))
    loss = kernel().linear_cross_entropy(hidden, weight, labels)
    (dweight,) = torch.autograd.grad(loss, weight)
    assert loss.item() == 0 and not dweight.any()


def test_batches_and_slices() -> None:
    """[B, S, D] without its last position, as multi-token prediction has it."""
    hidden, weight, labels = inputs(kernel(), 12, torch.float32)
    hidden, labels = hidden.view(2, 6, -1)[:, :-1], labels.view(2, 6)[:, 1:]
    loss = kernel().linear_cross_entropy(hidden, weight, labels)
    assert calc_diff(loss, exact_loss(hidden.double(), weight.double(), labels)) <= 1e-12


def test_large_logits() -> None:
    """Logits of some hundreds: no exponential of them is finite in float32."""
    hidden, weight, labels = inputs(kernel(), 20, torch.float32)
    loss = kernel().linear_cross_entropy(200 * hidden, weight, labels)
    assert calc_diff(loss, exact_loss(200 * hidden.double(), weight.double(), labels)) <= 1e-12


def test_labels_at_the_edges_of_tiles() -> None:
    """The logit of a label has one program to write it."""
    module = kernel()
    tile = module.FORWARD["BLOCK_N"]
    labels = torch.tensor([at for edge in range(0, module.VOCAB_SIZE, tile) for at in (edge - 1, edge, edge + 1)][1:])
    hidden, weight, _ = inputs(module, len(labels), torch.float32)
    with watched():
        loss = module.linear_cross_entropy(hidden, weight, labels)
    assert len(labels) > 5 and calc_diff(loss, exact_loss(hidden.double(), weight.double(), labels)) <= 1e-12


def test_operators() -> None:
    """Schemas, and what FakeTensor is told, are those of the real ones."""
    hidden, weight, labels = (t.detach() for t in inputs(kernel(), 5, torch.bfloat16))
    loss, lse = kernel()._forward(hidden, weight, labels)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(kernel()._forward, (hidden, weight, labels), test_utils=checks)
    torch.library.opcheck(kernel()._backward, (loss, hidden, weight, labels, lse), test_utils=checks)


FAULTS = {
    "columns behind the last": ('logits = tl.where((offs_n < V)[None, :], logits, float("-inf"))', "logits = logits"),
    "depth behind the last": (
        "tl.load(hidden_ptr + k, mask=(k + offs_k < D)[None, :], other=0.0)",
        "tl.load(hidden_ptr + k)",
    ),
    "no largest taken off": ("m = tl.max(logits, 1)", "m = tl.min(logits, 1) - 100"),
    "target of a wrong column": ("tl.sum(tl.where(offs_n[None, :] ==", "tl.sum(tl.where(1 + offs_n[None, :] =="),
    "labels left out count": ("tl.where(label == IGNORED, 0.0, scale)", "tl.load(scale_ptr) + label * 0"),
    "one hot forgotten": ("label[:, None], dlogits - 1, dlogits)", "label[:, None], dlogits, dlogits)"),
    "columns of the first chunk": ("(first_column + offs_n)[None, :]", "(offs_n)[None, :]"),
    "dhidden of the last chunk alone": ("weight[columns], add=column > 0)", "weight[columns], add=False)"),
    "dweight of the last chunk alone": ("hidden[rows], add=token > 0)", "hidden[rows], add=False)"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # faults overflow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated(NAME, *FAULTS[fault], **SIZES)
    monkeypatch.setattr(module, "TOKEN_CHUNK", 256)
    monkeypatch.setattr(module, "VOCAB_CHUNK", 512)
    with pytest.raises(AssertionError):
        check(module, 300, torch.float32, DTYPES[torch.float32])
