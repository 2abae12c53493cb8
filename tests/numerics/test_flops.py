"""FLOPs of the graph against those that PyTorch counts while the emitted model runs, to the last one.

The graph counts causal attention as half a square, less what a window hides, and norms and biases as 2 per weight and
token. PyTorch counts products alone and sees the whole square that plain attention computes, at the width that the
narrower of k and v is padded to. Checked are forward, the loss with multi-token prediction, and backward.
"""

from collections.abc import Mapping

import pytest
import torch
from numerics.families import CASES, LENGTH, Case
from numerics.harness import Compile, OracleOf, Package, imported_text, next_tokens, random_model, some_tokens
from numerics.specs import SPECS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsc.compiler.driver import build
from dsc.compiler.graph.block import Node
from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import BiasedLinear

BATCH = 2
VARIANTS = [
    case
    for case in CASES
    if case.is_base or case.variant in ("odd", "values_wider_than_keys", "values_as_wide_as_keys", "tied")
]
WITH_MORE_LOSSES = ["mtp", "mtp_of_depth_3_before_the_norm", "mtp_beside_grouped_attention", "everything"]


def expected_products(package: Package, method: str) -> int:
    """What PyTorch should count in a method of the model: parts of squares made whole, norms and biases left out."""
    graph, sizes = build(package.spec).training, {"B": BATCH, "S": LENGTH}
    expected = graph.flops(method).value(sizes)
    norms = 0
    for _, node, bound in graph.walk(method):
        if isinstance(node.op, RmsNorm | CausalAttention):
            useful = node.flops().substitute(bound).value(sizes)
            norms += useful * isinstance(node.op, RmsNorm)
            expected += whole_square(node, bound, sizes) - useful
        elif isinstance(node.op, BiasedLinear):
            expected -= 2 * tensor(node.output_types[0]).numel.substitute(bound).value(sizes)
    assert norms > 0
    return expected


def whole_square(node: Node, bound: Mapping[str, Dim], sizes: Mapping[str, int]) -> int:
    """Two products of S x S x H, at the width that the narrower of k and v is padded to; nothing of a norm."""
    if isinstance(node.op, RmsNorm):
        return 0
    (batch, length, heads, keys), (*_, values) = (
        [dim.substitute(bound).value(sizes) for dim in tensor(type).shape] for type in node.input_types[::2]
    )
    return 4 * batch * length * length * heads * max(keys, values)


def counted(package: Package) -> tuple[int, int, int]:
    """Forward, loss and backward of the loss. In float64 the grouped product is a loop, which hides nothing."""
    model, tokens = random_model(package), some_tokens(BATCH)
    labels = next_tokens(tokens)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(tokens)
        with FlopCounterMode(display=False) as with_loss:
            loss, _ = model.loss(tokens, labels)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), with_loss.get_total_flops(), backward.get_total_flops()


def assert_counted(package: Package) -> None:
    forward, with_loss, backward = counted(package)
    assert forward == expected_products(package, "Model.forward")
    assert with_loss == expected_products(package, "Model.loss")
    assert backward == 2 * with_loss


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_families(case: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    assert_counted(compiled(imported_text(oracle_of(case))))


@pytest.mark.parametrize("name", WITH_MORE_LOSSES)
def test_multi_token_prediction(name: str, compiled: Compile) -> None:
    assert_counted(compiled(SPECS[name]))
