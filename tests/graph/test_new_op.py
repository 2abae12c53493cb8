"""The graph drives the emission: an op kind that only this file knows appears wherever ops are asked something.

Its class and its one template are all there is of it; a pass puts it into a block.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from difflib import ndiff
from types import ModuleType

import pytest
import torch
from jinja2 import DictLoader

from dsc.compiler.driver import build, emit
from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import OPS, Op, Saved, Types, record, register, tensor
from dsc.compiler.graph.saved import saved_bytes, saved_storages
from dsc.compiler.graph.verify import VerifyError, verify
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]

KEY = "DenseLayer.forward"
CAP = 0.01
TEMPLATES = DictLoader(
    {"ops/soft_cap.py.jinja": "{% block line %}torch.tanh({{ x }} / {{ op.cap }}) * {{ op.cap }}{% endblock %}"}
)


@record
class SoftCap(Op):
    """cap * tanh(x / cap)."""

    kind = "soft_cap"
    cap: float

    def infer(self, inputs: Types) -> Types:
        return (tensor(inputs[0]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * 3

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("own", 0, tensor(outputs[0])),)


@pytest.fixture
def registered() -> Iterator[None]:
    register(SoftCap)
    yield
    del OPS[SoftCap.kind]


@pytest.fixture
def spec(shrunk: Callable[[ModelSpec], ModelSpec]) -> ModelSpec:
    return shrunk(load("tiny"))


def cap_attention(graph: Graph) -> Graph:
    """The pass: what the attention of a dense layer returns is capped before the residual adds it."""
    block = graph.blocks[KEY]
    nodes: list[Node] = []
    for node in block.nodes():
        nodes.append(node)
        if node.op.attribute() == "self_attn":
            (h,) = node.outputs
            capped = Value("capped", 0, "h", h.type)
            nodes.append(Node("capped", SoftCap(CAP), (h,), (capped,)))
    changed = block.with_nodes(nodes).reinfer({h: capped}, leave=("capped",))
    return dataclasses.replace(graph, blocks={**graph.blocks, KEY: changed})


def changed_lines(before: str, after: str) -> list[str]:
    return [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


@pytest.mark.usefixtures("registered")
def test_its_line_and_nothing_else_is_emitted(spec: ModelSpec) -> None:
    before, after = emit(build(spec)), emit(build(spec, (cap_attention,)), TEMPLATES)
    line = f"+ {{}}h = torch.tanh(h / {CAP}) * {CAP}"
    assert changed_lines(before["model.py"], after["model.py"]) == [line.format(" " * 8)]
    assert changed_lines(before["infer/decode.py"], after["infer/decode.py"]) == [line.format(" " * 4)]
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.py", "infer/decode.py", "README.md", "dsc.lock.json"}


@pytest.mark.usefixtures("registered")
def test_its_costs_are_in_the_sums(spec: ModelSpec) -> None:
    plain, capped = build(spec).training, build(spec, (cap_attention,)).training
    (node,) = (node for node in capped.blocks[KEY].nodes() if isinstance(node.op, SoftCap))
    layers = next(group.repeat for group in spec.layers if group.ffn == "dense")
    type = tensor(node.outputs[0].type)
    for key, times in ((KEY, 1), ("Model.backbone", layers), ("Model.loss", layers)):
        assert (capped.flops(key) - plain.flops(key)).same(type.numel * 3 * times)
        assert (saved_bytes(capped, key) - saved_bytes(plain, key)).same(type.bytes * times)
    assert capped.parameters() == plain.parameters()


def test_verify_refuses_it_unless_registered(spec: ModelSpec) -> None:
    with pytest.raises(VerifyError, match="capped: soft_cap is not a registered op kind"):
        build(spec, (cap_attention,))


@pytest.mark.usefixtures("registered")
def test_verify_asks_it_for_its_type(spec: ModelSpec) -> None:
    def wrong(block: Block) -> Block:
        nodes = [
            dataclasses.replace(node, outputs=(dataclasses.replace(node.outputs[0], type=spoilt(node)),))
            if node.id == "capped"
            else node
            for node in block.nodes()
        ]
        return block.with_nodes(nodes)

    def spoilt(node: Node) -> object:
        type = tensor(node.outputs[0].type)
        return dataclasses.replace(type, shape=type.shape[:-1])

    graph = build(spec, (cap_attention,)).training
    verify(graph)
    with pytest.raises(VerifyError, match="capped: its outputs are"):
        verify(graph.map(wrong))


@pytest.mark.usefixtures("registered")
def test_the_package_runs_with_it(spec: ModelSpec, emitted: Callable[[Mapping[str, str]], Importer]) -> None:
    program = build(spec, (cap_attention,))
    model = emitted(emit(program, TEMPLATES))("model")
    layer = model.DenseLayer()
    x = torch.randn(2, 8, spec.hidden_size, requires_grad=True)
    rope = model.spread_pairs(model.rotary_table(8, x))
    seen: list[torch.Tensor] = []
    layer.self_attn.register_forward_hook(lambda module, inputs, output: output * 0 + 7.0)
    layer.post_attention_layernorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer(x, rope).sum().backward()
    torch.testing.assert_close(seen[0], x + CAP)
    assert any(storage.place == "capped.saved[0]" for storage in saved_storages(program.training, KEY))
