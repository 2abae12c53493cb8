"""FLOPs of the graph against those that PyTorch counts while the emitted model runs, to the last one.

The graph counts causal attention as half a square and norms as 2 per weight and token. PyTorch counts products alone
and sees the whole square that plain attention computes, at the width that the narrower of k and v is padded to.
Checked are forward, the loss with multi-token prediction, and backward.
"""

import pytest
import torch
from numerics.families import CASES, LENGTH, Case
from numerics.harness import Compile, OracleOf, Package, imported_text, next_tokens, random_model, some_tokens
from numerics.specs import SPECS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsc.compiler.driver import build
from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.norm import RmsNorm

BATCH = 2
VARIANTS = [
    case
    for case in CASES
    if case.is_base or case.variant in ("odd", "values_wider_than_keys", "values_as_wide_as_keys", "tied")
]
WITH_MORE_LOSSES = ["mtp", "mtp_of_depth_3_before_the_norm", "mtp_beside_grouped_attention", "everything"]


def flops_of_kind(graph: Graph, key: str, kind: type) -> Dim:
    """Of the nodes of one op kind, through all calls."""
    total: Dim = Int(0)
    for node in graph.blocks[key].nodes():
        if isinstance(node.op, Call):
            for callee, _ in node.op.runs():
                total = total + flops_of_kind(graph, callee, kind).substitute(node.op.bindings(node.input_types))
        elif isinstance(node.op, kind):
            total = total + node.flops()
    return total


def expected_products(package: Package, method: str) -> int:
    """What PyTorch should count in a method of the model: half squares made whole, norms left out."""
    graph, attention = build(package.spec).training, package.spec.attention
    sizes = {"B": BATCH, "S": LENGTH}
    everything, squares, norms = (
        formula.value(sizes)
        for formula in (
            graph.flops(method),
            flops_of_kind(graph, method, CausalAttention),
            flops_of_kind(graph, method, RmsNorm),
        )
    )
    if attention.kind == "mla":
        keys, values = attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim
    else:
        keys = values = attention.head_dim
    padded, odd = divmod(squares * 2 * max(keys, values) * 2, keys + values)
    assert not odd and norms > 0
    return everything - squares - norms + padded


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
