"""Which products of a model are in FP8 on which machine."""

from collections.abc import Iterator

import pytest

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import TARGETS
from dsc.compiler.ops.fused.fp8 import Fp8Linears, Fp8RoutedAndSharedExperts, Fp8RoutedExperts
from dsc.compiler.passes.fuse.choose import choose_kernels
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

ATTENTION = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"gate_up_proj", "down_proj of experts"}


def program(kind: str | None = "h100", name: str = "deepseek-v3", **linear: object) -> Program:
    data = load(name).model_dump()
    data["precision"]["linear"] = {"kind": "fp8_block", **linear}
    data["cluster"] = kind and {"kind": kind, "nodes": 1}
    return build(ModelSpec.model_validate(data))


def in_fp8(graph: Graph) -> set[str]:
    return set(_in_fp8(graph))


def _in_fp8(graph: Graph) -> Iterator[str]:
    for block in graph.blocks.values():
        for node in block.nodes():
            if isinstance(node.op, Fp8Linears):
                yield from (linear.name for linear in node.op.linears)
            if isinstance(node.op, Fp8RoutedExperts | Fp8RoutedAndSharedExperts):
                yield from EXPERTS


def test_the_recipe_of_deepseek_v3() -> None:
    """Section 3.3.1 of its report; eh_proj, the head and the router are not among them."""
    v3 = program()
    assert in_fp8(v3.training) == ATTENTION | FEED_FORWARD | EXPERTS
    # The latent attention of generation multiplies by views of kv_b_proj, which have no codes.
    assert in_fp8(v3.inference) == ATTENTION - {"kv_b_proj"} | FEED_FORWARD | EXPERTS
    assert v3.notes == ()


@pytest.mark.parametrize(
    ("product", "names"), [("attention", ATTENTION), ("feed_forward", FEED_FORWARD), ("experts", EXPERTS)]
)
def test_each_line_of_the_table_is_obeyed(product: str, names: set[str]) -> None:
    wide = program(products={product: "bf16"})
    assert in_fp8(wide.training) == (ATTENTION | FEED_FORWARD | EXPERTS) - names


def test_layers_that_read_the_same_x_are_one_line() -> None:
    text = emit(program(name="mixtral-8x7b"))["model.py"]
    line = "q, k, v = fp8_linears(x, [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])"
    assert line in text and "self.q_proj = nn.Linear(" in text
    assert "return fp8_linear(out, self.o_proj.weight)" in text


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "llama-3.1-8b", "mixtral-8x7b", "minicpm3-4b"])
def test_work_and_parameters_stay(name: str) -> None:
    """Products by themselves, however they are computed."""
    fp8, wide = (
        build(
            ModelSpec.model_validate(program(name=name).spec.model_dump() | {"precision": {"linear": {"kind": kind}}})
        )
        for kind in ("fp8_block", "bf16")
    )
    for one, two in ((fp8.training, wide.training), (fp8.inference, wide.inference)):
        assert one.flops("Model.forward").same(two.flops("Model.forward"))
        assert one.parameters() == two.parameters()


@pytest.mark.parametrize(
    ("kind", "linear", "reason"),
    [
        (None, {}, "for lack of a cluster"),
        ("a100", {}, "sm_80 has no units for float8_e4m3fn"),
        ("mi300x", {}, "gfx942 has no units for float8_e4m3fn"),
        ("h100", {"weight_block": [64, 64], "activation_block": [1, 64]}, "no tiles for blocks of 64 x 64 and 1 x 64"),
    ],
)
def test_what_a_machine_cannot_do_is_said(kind: str | None, linear: dict[str, object], reason: str) -> None:
    wide = program(kind, **linear)
    (note,) = wide.notes
    assert note.startswith("precision.linear: products run in bf16, not in FP8: ") and reason in note
    assert not in_fp8(wide.training) and not in_fp8(wide.inference)


def test_nothing_is_said_where_nothing_was_asked_for() -> None:
    assert program("a100", products=dict.fromkeys(("attention", "feed_forward", "experts"), "bf16")).notes == ()


@pytest.mark.parametrize("arch", [arch for arch, target in TARGETS.items() if target.fp8])
def test_every_target_with_fp8_takes_it(arch: str) -> None:
    spec = program().spec
    assert choose_kernels(spec, TARGETS[arch]).notes == ()
