"""Weights in FP8 are quantized when an engine is made: the same products to the last bit, and no step does it again."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from numerics.reference import dequantised
from numerics.test_checkpoint import to_fp8
from test_fp8_training import small

from dsc.compiler.driver import build, emit

Importer = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def package(emitted: Callable[[dict[str, str]], Importer]) -> Importer:
    return emitted(emit(build(small("fp8_block"))))


@pytest.fixture
def quantized(package: Importer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all weights that are quantized from now on."""
    module, shapes = package("kernels.fp8_quantize"), []
    plain = module.reference_blocks

    def noted(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(tuple(w.shape))
        codes, scale = plain(w)
        return codes, scale

    monkeypatch.setattr(module, "reference_blocks", noted)
    yield shapes


def test_an_engine_quantizes_when_it_is_made_and_never_again(
    package: Importer, quantized: list[tuple[int, ...]]
) -> None:
    model = package("model").Model().bfloat16()
    engine = package("infer.engine").Engine(model)
    assert quantized
    quantized.clear()
    assert [len(new) for new in engine.generate([[1, 2, 3], [4]], 6)] == [6, 6]
    assert not quantized
    model(torch.tensor([[1, 2, 3]]))
    assert quantized, "the model itself quantizes in every call, or this test sees nothing"


def test_products_by_codes_are_those_by_weights(package: Importer) -> None:
    linear, swiglu = package("kernels.fp8_linear"), package("kernels.fp8_swiglu_linear")
    quantize = package("kernels.fp8_quantize").quantize_blocks
    x, one, two = (torch.randn(*shape, dtype=torch.bfloat16) for shape in ((3, 5, 256), (200, 256), (72, 256)))
    expected = linear.fp8_linears(x, [one, two])
    for made, wanted in zip(linear.fp8_linears_by_codes(x, quantize(one), quantize(two)), expected, strict=True):
        assert torch.equal(made, wanted)
    assert torch.equal(linear.fp8_linear_by_codes(x, *quantize(two)), expected[1])
    gate, up = torch.randn(2, 7, 256, dtype=torch.bfloat16)
    made = swiglu.fp8_swiglu_linear_by_codes(gate, up, *quantize(one))
    assert torch.equal(made, swiglu.fp8_swiglu_linear(gate, up, one))


@pytest.mark.parametrize("with_shared", [False, True])
def test_experts_by_codes_are_those_by_weights(package: Importer, with_shared: bool) -> None:
    experts, sort = package("kernels.fp8_experts"), package("kernels.expert_dispatch").sort_by_expert
    quantize = package("kernels.fp8_quantize").quantize_blocks
    x, shared = torch.randn(2, 9, 128, dtype=torch.bfloat16)
    gate_up, down = (torch.randn(8, *shape, dtype=torch.bfloat16) for shape in ((256, 128), (128, 128)))
    chosen = torch.rand(9, 8).topk(2).indices
    arguments = x, torch.rand(9, 2), *sort(chosen, 8)
    more = (shared,) if with_shared else ()
    made = experts.fp8_routed_experts_by_codes(*arguments, experts.quantize_halves(gate_up), quantize(down), *more)
    assert torch.equal(made, experts.fp8_routed_experts(*arguments, gate_up, down, *more))


def test_codes_of_a_checkpoint_come_back(package: Importer) -> None:
    """Bit for bit through the bfloat16 of the model's weights; scales but for the rounding of a block's largest one."""
    codes, scale = to_fp8(torch.randn(256, 384), (128, 128))
    weight = dequantised(codes, scale, (128, 128)).bfloat16()
    again, scale_again = package("kernels.fp8_quantize").quantize_blocks(weight)
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
    assert ((scale_again / scale - 1).abs() <= 2**-8).all()


def test_bytes_of_prepared_weights_are_the_graph_s(package: Importer) -> None:
    """What attention and the experts hold as codes and scales."""
    module = package("infer.prepare").Model(package("model").Model().bfloat16())
    serving = build(small("fp8_block")).serving
    for name, prepared in (("LatentAttention", module.layers[0].self_attn), ("MixtureOfExperts", module.layers[1].mlp)):
        values = {value.name: value for block in serving.methods(name) for value in block.prepared}
        assert len(values) >= 4
        for value in values.values():
            held = getattr(prepared, value.name)
            assert list(held.shape) == [dim.value() for dim in value.type.shape], value.name
            assert value.name.startswith("w_u") or held.nbytes == value.type.bytes.value(), value.name
