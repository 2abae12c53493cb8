"""A model with kernels computes what the same model without them does: one training step, loss and every gradient."""

import copy
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
import torch
from decoding import chunk_logits
from kernels.emulated import emulate
from kernels.lab import calc_diff
from torch import Tensor, nn

from dsc.compiler.driver import build, emit
from dsc.spec.attention import WindowAttention
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]

FAMILIES = ["tiny", "deepseek-v2-lite", "llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b", "minicpm3-4b"]
FAMILIES += ["mistral-7b", "tiny-window"]
FAMILIES_IN_FP8 = ["deepseek-v3", "mixtral-8x7b", "llama-3.1-8b"]
BATCH, LENGTH = 2, 9
SEEDS = 5
LIMIT = 0.1


def on_gpus(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"cluster": Machines(kind="h100", nodes=1)})


def pair(spec: ModelSpec, emitted: Emitted, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The model on GPUs and without, with the same weights."""
    fused, plain = (emitted(emit(build(one)))("model").Model() for one in (on_gpus(spec), spec))
    torch.manual_seed(seed)
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.05) if weight.dim() > 1 else nn.init.uniform_(weight, 0.5, 1.5)
    fused.load_state_dict(plain.state_dict())
    return fused, plain


def in_fp8(name: str) -> ModelSpec:
    """One layer of the shrunken model with products in FP8: of two blocks, of one, and of less than one."""
    data = shrunk(load(name)).model_dump()
    data |= {"hidden_size": 256, "layers": data["layers"][-1:], "mtp": None}
    data["layers"][0]["repeat"] = 1
    data["precision"]["linear"] = {"kind": "fp8_block"}
    if data["ffn"]["moe"]:
        data["ffn"]["dense"] = None
        data["ffn"]["moe"] |= {"n_routed_experts": 8, "moe_intermediate_size": 128}  # whole blocks: see the emulation
    return ModelSpec.model_validate(data)


def step(
    model: nn.Module, dtype: torch.dtype, vocabulary: int, shape: tuple[int, int] = (BATCH, LENGTH)
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one training step."""
    batch, length = shape
    tokens = torch.randint(0, vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    loss, _ = model.to(dtype).loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.item(), {key: weight.grad for key, weight in model.named_parameters()}


def shape_of(spec: ModelSpec) -> tuple[int, int]:
    """Rows longer than the window of any layer."""
    windows = [one.window for one in spec.attentions.values() if isinstance(one, WindowAttention)]
    return BATCH, max([LENGTH, *(window + 7 for window in windows)])


def with_z_loss(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"z_loss": 0.3})


def with_clamp(spec: ModelSpec) -> ModelSpec:
    """At a limit that a third of the gates and ups of `pair` are beyond."""
    return spec.model_copy(update={"ffn": spec.ffn.model_copy(update={"swiglu_limit": LIMIT})})


@pytest.mark.parametrize("name", [*FAMILIES, "tiny with z-loss", "tiny clamped", "mixtral-8x7b clamped"])
def test_one_step(name: str, emitted: Emitted) -> None:
    spec = shrunk(load(name.split()[0]))
    if name.endswith("z-loss"):
        spec = with_z_loss(spec)
        assert "Z_LOSS" in emit(build(on_gpus(spec)))["kernels/linear_cross_entropy.py"]
    if name.endswith("clamped"):
        spec = with_clamp(spec)
    fused, plain = pair(spec, emitted)
    (loss, gradients), (expected_loss, expected) = (
        step(m, torch.float32, spec.vocab_size, shape_of(spec)) for m in (fused, plain)
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for key, gradient in gradients.items():
        assert calc_diff(gradient, expected[key]) <= 1e-9, key


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_in_bfloat16(name: str, emitted: Emitted) -> None:
    """Two ways of rounding are both wrong: the kernels' must not be further from float32 than PyTorch's.

    Where two experts' scores are nearly equal, either way of rounding may choose the other one, whose gradient is
    another; most seeds have no such token, and one of them tells.
    """
    spec = shrunk(load(name))
    found: list[dict[str, float]] = []
    while len(found) < SEEDS and (not found or max(found[-1].values()) > 1):
        fused, plain = pair(spec, emitted, seed=len(found))
        for model in (fused, plain):
            model.bfloat16()
        exact = copy.deepcopy(plain)
        (loss, gradients), (plain_loss, others) = (
            step(m, torch.bfloat16, spec.vocab_size, shape_of(spec)) for m in (fused, plain)
        )
        exact_loss, expected = step(exact, torch.float32, spec.vocab_size, shape_of(spec))
        assert loss == pytest.approx(exact_loss, rel=2e-3) and plain_loss == pytest.approx(exact_loss, rel=2e-3)
        errors = {key: (calc_diff(gradients[key], one), calc_diff(others[key], one)) for key, one in expected.items()}
        found.append({key: ours / (1.5 * theirs + 1e-5) for key, (ours, theirs) in errors.items()})
    assert max(found[-1].values()) <= 1, found


@pytest.mark.parametrize("name", FAMILIES_IN_FP8)
def test_one_step_in_fp8(name: str, emitted: Emitted) -> None:
    """The model without kernels emulates the products that the recipe has in FP8, and no others.

    Sums that differ in their last bit, on both sides of where two codes meet, become numbers that differ by a
    sixteenth. With few tokens most seeds have none of them, and there everything is equal.
    """
    spec = in_fp8(name)
    found = [{"loss": 1.0}]
    while len(found) <= SEEDS and max(found[-1].values()) > 1e-9:
        fused, plain = pair(spec, emitted, seed=len(found))
        emulate(plain)
        (loss, gradients), (expected_loss, expected) = (
            step(model, torch.float32, spec.vocab_size, (2, 3)) for model in (fused, plain)
        )
        found.append({key: calc_diff(gradient, expected[key]) for key, gradient in gradients.items()})
    assert max(found[-1].values()) <= 1e-9, found[1:]
    assert loss == pytest.approx(expected_loss, rel=1e-6)


PIECES = [("tiny", "fp32"), ("deepseek-v2-lite", "fp32"), ("minicpm3-4b", "fp32"), ("mixtral-8x7b", "fp32")]


@pytest.mark.parametrize(("name", "rows"), [*PIECES, ("tiny", "fp8")])
def test_decoding_in_pieces_equals_forward(name: str, rows: str, emitted: Emitted) -> None:
    """A prompt over more than a page, then one token, then several at once; latent attention is absorbed there.

    Rows in FP8 have three bits of mantissa: up to 1/16 is lost of each number, some 7e-4 by calc_diff in every layer.
    """
    data = on_gpus(shrunk(load(name))).model_dump()
    if data["attention"]["kind"] == "mla":
        data["attention"] |= {"kv_lora_rank": 128, "qk_rope_head_dim": 16}  # dims that the kernel takes
    data["precision"]["kv_cache"] = rows
    spec = ModelSpec.model_validate(data)
    package = emitted(emit(build(spec)))
    torch.manual_seed(0)
    model = package("model").Model()
    tokens = torch.randint(0, spec.vocab_size, (BATCH, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens)
    for logits, end in zip(chunk_logits(package, model, tokens, [66, 1, 3]).unbind(1), (66, 67, 70), strict=True):
        difference = calc_diff(logits, expected[:, end - 1])
        assert 1e-9 < difference <= 3e-3 if rows == "fp8" else difference <= 1e-9
    assert ("mla_decode" in vars(package("infer.decode"))) == (spec.attention.kind == "mla")
