"""Any valid spec compiles to a model that trains: random ones over every axis of the language.

`test_some` draws the same few examples each time; `test_many` is the long search.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import ModuleType

import pytest
import torch
from decoding import chunk_logits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.saved import saved_bytes
from dsc.compiler.graph.verify import verify
from dsc.spec.attention import Attention, MlaAttention, WindowAttention
from dsc.spec.checks import check
from dsc.spec.ffn import DenseFfn, MoeFfn
from dsc.spec.loader import load, loads
from dsc.spec.model import Layer, ModelSpec

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]
Specs = st.SearchStrategy[ModelSpec]

UNHURRIED = settings(deadline=None, suppress_health_check=list(HealthCheck))
FIXED = settings(UNHURRIED, derandomize=True, database=None, phases=[Phase.generate])


def test_some(random_specs: Specs, emitted: Emitted) -> None:
    @settings(FIXED, max_examples=25)
    @given(random_specs)
    def examples(spec: ModelSpec) -> None:
        holds(spec, emitted)

    examples()


@pytest.mark.slow
def test_many(random_specs: Specs, emitted: Emitted) -> None:
    @settings(UNHURRIED, max_examples=600)
    @given(random_specs)
    def examples(spec: ModelSpec) -> None:
        holds(spec, emitted)

    examples()


def test_written_in_any_order_they_are_the_same(random_specs: Specs) -> None:
    @settings(FIXED, max_examples=8)
    @given(random_specs, st.randoms(use_true_random=False))
    def examples(spec: ModelSpec, order: random.Random) -> None:
        text = json.dumps(shuffled(spec.model_dump(exclude_unset=True), order))
        assert emit(build(loads(text, "shuffled"))) == emit(build(spec))

    examples()


def holds(spec: ModelSpec, emitted: Emitted) -> None:
    """Everything that must be true of a spec."""
    assert not check(spec)
    program = build(spec)
    verify(program.training)
    verify(program.inference)
    verify(program.serving)
    package = emitted(emit(program))
    model = package("model").Model()
    counts_agree(program, model)
    flops_agree(program)
    decodes(package, spec)
    trains(model, spec)


def counts_agree(program: Program, model: torch.nn.Module) -> None:
    """Parameters: by the graph, in the emitted model, and by arithmetic on the spec."""
    graph = {name: [dim.value() for dim in p.type.shape] for name, p in program.training.parameters().items()}
    assert graph == {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    stats = compute_stats(program.spec, program.training).parameters
    assert (stats.total, stats.mtp) == closed_form(program.spec)
    assert stats.active == stats.total - idle_parameters(program.spec)
    assert saved_bytes(program.training, "Model.loss").value({"B": 1, "S": 8}) > 0


def idle_parameters(spec: ModelSpec) -> int:
    """Of the experts that one token does not choose."""
    mixtures = [ffn for layer in spec.schedule if isinstance(ffn := spec.ffns[layer.ffn], MoeFfn)]
    idle = [(moe.n_routed_experts - moe.num_experts_per_tok) * moe.moe_intermediate_size for moe in mixtures]
    return 3 * spec.hidden_size * sum(idle)


def flops_agree(program: Program) -> None:
    """Training: six for each parameter that a token touches, and three products of half a square in each layer, less
    the half square before the window."""
    spec, stats = program.spec, compute_stats(program.spec, program.training)
    length, attention = spec.workload.sequence_length, 0
    for layer in spec.schedule:
        a = spec.attentions[layer.attention]
        dims = a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim if isinstance(a, MlaAttention) else 2 * a.head_dim
        unseen = max(length - a.window, 0) if isinstance(a, WindowAttention) else 0
        attention += (length**2 - unseen**2) * a.num_attention_heads * dims
    expected = 6 * stats.parameters.active_without_embedding + Fraction(3 * attention, length)
    assert stats.flops_per_token.training == round(expected)


def closed_form(spec: ModelSpec) -> tuple[int, int]:
    """Parameters of the model, and of multi-token prediction beside it."""
    hidden = spec.hidden_size
    layers = [layer_parameters(spec, layer) for layer in spec.schedule]
    tables = spec.vocab_size * hidden * (1 if spec.tie_word_embeddings else 2)
    depth = spec.mtp.depth if spec.mtp else 0
    return sum(layers) + tables + hidden, depth * (layers[-1] + 2 * hidden * hidden + 3 * hidden)


def layer_parameters(spec: ModelSpec, layer: Layer) -> int:
    hidden, ffn = spec.hidden_size, spec.ffns[layer.ffn]
    around = attention_parameters(spec.attentions[layer.attention], hidden) + 2 * hidden
    if isinstance(ffn, DenseFfn):
        return around + 3 * hidden * ffn.intermediate_size
    experts = 3 * hidden * ffn.moe_intermediate_size * (ffn.n_routed_experts + ffn.n_shared_experts)
    return around + experts + hidden * ffn.n_routed_experts


def attention_parameters(a: Attention, hidden: int) -> int:
    if not isinstance(a, MlaAttention):
        heads = 2 * a.num_attention_heads + 2 * a.num_key_value_heads
        biases = (a.num_attention_heads + 2 * a.num_key_value_heads) * a.head_dim if a.qkv_bias else 0
        return hidden * heads * a.head_dim + biases + (2 * a.head_dim if a.qk_norm else 0)
    query_dim = a.num_attention_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
    rank = a.q_lora_rank
    queries = hidden * query_dim if rank is None else hidden * rank + rank + rank * query_dim
    latent = hidden * (a.kv_lora_rank + a.qk_rope_head_dim) + a.kv_lora_rank
    expanded = a.kv_lora_rank * a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim)
    return queries + latent + expanded + a.num_attention_heads * a.v_head_dim * hidden


def decodes(package: Importer, spec: ModelSpec) -> None:
    """With the cache, in two pieces, the logits are those of the whole; in float64, so that no choice flips."""
    torch.manual_seed(1)
    model = package("model").Model().double().eval()
    tokens = torch.randint(0, spec.vocab_size, (2, 7))
    logits = chunk_logits(package, model, tokens, [4, 3])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens)[:, [3, 6]], rtol=1e-9, atol=1e-9)


def trains(model: torch.nn.Module, spec: ModelSpec) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, spec.vocab_size, (2, 13))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss, parts = model.loss(tokens[:, :-1], tokens[:, 1:])
        assert loss.isfinite() and all(part.isfinite() for part in parts.values())
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "update_selection_bias"):
            model.update_selection_bias()


def shuffled(value: object, order: random.Random) -> object:
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


def test_a_miscount_is_noticed(shrunk: Callable[[ModelSpec], ModelSpec], emitted: Emitted) -> None:
    """The checks above can fail: a graph with a norm too few is told apart from the model."""
    program = build(shrunk(load("tiny")))
    model = emitted(emit(program))("model").Model()
    counts_agree(program, model)
    blocks = {key: less_a_norm(block) for key, block in program.training.blocks.items()}
    less = dataclasses.replace(program, training=dataclasses.replace(program.training, blocks=blocks))
    with pytest.raises(AssertionError):
        counts_agree(less, model)


def less_a_norm(block: Block) -> Block:
    norm = next((node for node in block.nodes() if node.op.kind == "rms_norm"), None)
    return block if norm is None else block.without(norm.id, dict.fromkeys(norm.outputs, norm.inputs[0]))
