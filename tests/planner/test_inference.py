"""The memory of GPUs that serve, against published deployments of DeepSeek-V3 and against the graph."""

import pytest

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import served
from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.verify import verify
from dsc.compiler.planner.serving.arena import place
from dsc.compiler.planner.serving.memory import DoesNotFit, Request, Serving, ServingMemory, Storing, low_latency_bytes
from dsc.compiler.planner.serving.served import Graphs
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.precision import Precision

H800 = 84_943_110_144
H100 = 80 * 2**30


def memory_of(name, phase="decode", codes=True, drafts=False):
    """As one GPU runs it, experts too: in FP8 where the spec asks for codes. Prefill expands what decode attends to."""
    spec = load(name).model_copy(update={"cluster": Machines(kind="h800", nodes=40)})
    if not codes:
        spec = spec.model_copy(update={"precision": Precision()})
    graph = served(spec).alone
    return ServingMemory(spec, build_graph(spec), Graphs(graph, graph), phase, drafts)


@pytest.fixture(scope="module")
def v3():
    return memory_of("deepseek-v3")


@pytest.fixture(scope="module")
def v3_wide():
    """In bfloat16 throughout."""
    return memory_of("deepseek-v3", codes=False)


@pytest.fixture(scope="module")
def expanded():
    return memory_of("deepseek-v3", phase="prefill", codes=False)


@pytest.fixture(scope="module")
def llama():
    return memory_of("llama-3.1-8b")


def line(plan, name):
    (found,) = (one for one in plan.lines if one.name == name)
    return found


# Published deployments. 47 and 48: DeepSeek-V3 report, section 3.4; 49 and 50: open-infra-index, day 6 (February 2025).


def test_row_47_prefill(v3):
    """4 nodes: TP4 with SP, DP8, EP32, 32 redundant experts: 8 + 1 routed a GPU, dense layers without TP. It fits."""
    serving = Serving(tp=4, dp=8, slots=9, dense_tp=1)
    assert serving.gpus == 32 == 4 * 8
    assert serving.redundant(256) == 32
    assert (256 + 32) // 32 == 288 // 32 == serving.slots
    plan = v3.plan(serving, Request("prefill", 4096, 4096, at_once=4), Storing(), H800)
    assert plan.bytes <= H800
    assert plan.sequences >= 4


def test_row_48_decode(v3):
    """40 nodes: TP4 with SP, DP80, EP320: one expert a GPU, 64 GPUs for redundant and shared ones. It fits."""
    serving = Serving(tp=4, dp=80, slots=1, shared=False)
    assert serving.gpus == 320 == 40 * 8
    assert 256 + serving.redundant(256) == 256 + 64 == 320
    plan = v3.plan(serving, Request("decode", 4989), Storing(), H800)
    one_expert = line(plan, "routed expert weights").bytes
    codes, scales = 3 * 7168 * 2048, 3 * (7168 // 128) * (2048 // 128) * 4
    assert one_expert == 58 * (codes + scales)
    assert not any(one.name.startswith("shared") for one in plan.lines)


def test_row_49_online():
    """Prefill EP32 / DP32 with 9 routed and a shared expert a GPU; decode EP144 / DP144 on 18 nodes with 2 and one."""
    prefill, decode = Serving(tp=1, dp=32, slots=9), Serving(tp=1, dp=144, slots=2)
    assert prefill.redundant(256) == decode.redundant(256) == 32
    assert decode.gpus == 18 * 8
    assert decode.slots == 288 // 144


def test_row_50_concurrency(v3, v3_wide, expanded):
    """14.8k tokens/s of a node at 20 to 22 a sequence are 84 to 92 sequences a GPU: 30.9 GB of cache, and they fit.

    In bfloat16 throughout, attention on the latent. Expanding the cache would leave room for half.
    """
    at_speed = [14_800 / 8 / speed for speed in (22, 20)]
    assert at_speed[0] < 88 < at_speed[1]
    assert 88 * 4989 * v3.token_bytes(Serving(1, 144, 2), Storing()) == pytest.approx(30.9e9, rel=0.002)
    serving, request = Serving(tp=1, dp=144, slots=2), Request("decode", 4989)
    assert v3_wide.plan(serving, request, Storing(), H800).sequences >= 88
    assert v3.plan(serving, request, Storing(), H800).sequences > 1.5 * 88
    assert expanded.plan(serving, request, Storing(), H800).sequences < 0.5 * 88


def test_a_token_of_the_cache(v3, llama):
    """70,272 bytes in bfloat16 (Insights into DeepSeek-V3, table 1); a float8 row is 512 + 4 x 4 + 64 x 2."""
    serving = Serving(1, 8, 32)
    assert v3.token_bytes(serving, Storing()) == 70_272
    assert v3.token_bytes(serving, Storing(rows="fp8")) == 61 * 656
    assert v3.token_bytes(Serving(4, 2, 32), Storing()) == 70_272  # a latent is whole on every tensor rank
    assert llama.token_bytes(Serving(1, 1), Storing()) == 32 * 2 * 8 * 128 * 2
    assert llama.token_bytes(Serving(8, 1), Storing()) == 32 * 2 * 1 * 128 * 2  # key-value heads are divided


# Against the graph.


@pytest.mark.parametrize(
    ("name", "width"), [("deepseek-v3", 64), ("deepseek-v2-lite", 64), ("llama-3.1-8b", 128), ("qwen3-30b-a3b", 128)]
)
def test_one_gpu_holds_every_parameter_once(name, width):
    """One GPU with all experts: the bytes of the whole model, without multi-token prediction. What expands latents is
    there twice: as trained for prompts, and as two matrices for answers."""
    memory = memory_of(name, codes=False)
    spec, training = memory.spec, verify(build_graph(load(name)))
    reached = {path for path in training.parameters() if not path.startswith("mtp.")}
    assert memory.parameters().keys() == reached
    experts = spec.moe().n_routed_experts if spec.ffn.moe else 0
    lines = {one.name: one for one in memory.weights(Serving(1, 1, experts), Storing())}
    tables = lines.pop("rotary table weights").bytes
    assert tables == 2 * 4 * spec.max_position_embeddings * width
    again = sum(one.type.bytes.value() for path, one in memory.parameters().items() if "kv_b_proj" in path)
    assert sum(one.bytes for one in lines.values()) == 2 * compute_stats(spec, training).parameters.total + again
    assert {one.provenance for one in lines.values()} == {"derived"}


def test_groups_of_gpus_hold_every_parameter(v3):
    """Over the GPUs of a deployment: experts once and redundant ones again, heads and vocabulary once in each group."""
    whole = {one.name: one.bytes for one in v3.weights(Serving(1, 1, 256), Storing())}
    parts = {one.name: one.bytes for one in v3.weights(Serving(4, 8, 9), Storing())}
    assert 32 * parts["routed expert weights"] * 256 == whole["routed expert weights"] * 288
    assert 4 * parts["vocabulary weights"] == whole["vocabulary weights"]
    assert parts["shared expert weights"] == whole["shared expert weights"]
    assert whole["attention weights"] / 4 < parts["attention weights"] < whole["attention weights"] / 2


def test_fp8_weights_halve_what_the_recipe_names(v3, v3_wide):
    """Products go to a byte a number and their scales; embedding, head, norms and routers stay as they are, and so do
    the two matrices that attention to latents multiplies by."""
    bf16 = {one.name: one.bytes for one in v3_wide.weights(Serving(1, 144, 2), Storing())}
    fp8 = {one.name: one.bytes for one in v3.weights(Serving(1, 144, 2), Storing())}
    assert fp8["vocabulary weights"] == bf16["vocabulary weights"]
    for name in ("routed expert weights", "shared expert weights", "dense weights"):
        assert fp8[name] == bf16[name] // 2 + bf16[name] // 2 // (128 * 128) * 4
    stays = 61 * 128 * (128 + 128) * 512 * 2
    assert 0.5 < (fp8["attention weights"] - stays) / (bf16["attention weights"] - stays) < 0.51


def test_tensor_ranks_share_rows_and_heads_and_nothing_else():
    """Sequence parallelism: hidden states of 64 tokens are divided by 8, so are heads; one row of logits is whole."""
    llama, request = memory_of("llama-3.1-8b", phase="prefill"), Request("prefill", 4096, new_tokens=64)
    alone, shared = (llama.values(Serving(tp, 1), request, 1) for tp in (1, 8))
    share = {one.name: (one.bytes, other.bytes) for one, other in zip(alone, shared, strict=True)}
    assert {whole / part for whole, part in share.values() if part} == {1, 8}
    hidden, last_hidden, logits = 64 * 4096 * 2, 4096 * 2, 128256 * 2
    of_size = {
        size: {part for whole, part in share.values() if whole == size} for size in (hidden, last_hidden, logits)
    }
    assert of_size == {hidden: {hidden // 8}, last_hidden: {last_hidden}, logits: {logits}}


# The plan itself.

DECODE = Request("decode", 4989)


@pytest.mark.parametrize("storing", [Storing(), Storing(rows="fp8", page=16)])
def test_one_sequence_more_does_not_fit(v3, storing):
    serving = Serving(1, 144, 2)
    plan = v3.plan(serving, DECODE, storing, H800)
    each = -(-DECODE.context // storing.page)
    assert plan.bytes <= plan.capacity
    assert plan.sequences * each <= plan.pages
    assert plan.capacity - plan.bytes < plan.page_bytes
    assert plan.arena.bytes == line(plan, "arena").bytes
    more = place(v3.values(serving, DECODE, plan.sequences + 1)).bytes - plan.arena.bytes
    buffers = low_latency_bytes(1, 7168, 288)
    spare = plan.capacity - plan.bytes + (plan.pages - plan.sequences * each) * plan.page_bytes
    assert spare < each * plan.page_bytes + more + buffers


def test_a_longer_context_never_holds_more_sequences(llama):
    counts = [llama.plan(Serving(1, 1), Request("decode", n), Storing(), H100).sequences for n in (512, 4096, 131072)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 7 * counts[1]


def test_more_gpus_never_hold_more_weights_each(v3):
    sizes = [
        sum(one.bytes for one in v3.weights(Serving(1, gpus, 256 // gpus), Storing())) for gpus in (8, 16, 32, 64, 128)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_what_does_not_fit_says_how_much(v3):
    with pytest.raises(DoesNotFit, match=r"one sequence of 4989 tokens needs [\d,]+ bytes of 84,943,110,144"):
        v3.plan(Serving(1, 8, 32), DECODE, Storing(), H800)


def test_every_line_has_its_source(v3):
    plan = v3.plan(Serving(1, 144, 2), DECODE, Storing(), H800)
    assert all(isinstance(one.bytes, int) and one.bytes > 0 and one.source for one in plan.lines)
    assumed = {one.name for one in plan.lines if one.provenance == "assumed"}
    assert assumed == {"CUDA context", "collective buffers", "expert buffers"}
    assert line(plan, "block tables").bytes == plan.sequences * (78 + 1) * 4


def test_the_expanded_cache_is_named(expanded):
    """What the arena's line names is what makes it large."""
    plan = expanded.plan(Serving(1, 144, 2), DECODE, Storing(), H800)
    assert all(".self_attn." in name for name in line(plan, "arena").tensors)


def test_buffers_of_low_latency_dispatch():
    """DeepEP's layout for V3, 128 tokens a rank: four buffers of 288 x 128 x (14336 + 224) bytes, and signals."""
    assert low_latency_bytes(128, 7168, 288) == 4 * 288 * 128 * (14336 + 224) + 2 * 1152


@pytest.mark.parametrize(("context", "kept"), [(1000, 1000), (4096, 4096), (32768, 4096)])
def test_windows_are_filled_once(context, kept):
    """Mistral 7B: 32 layers, keys and values of 8 heads of 128 in bfloat16, of the last 4096 tokens and no more."""
    memory, serving = memory_of("mistral-7b"), Serving(tp=2, dp=1)
    each = 32 * 2 * 8 * 128 * 2 * kept // serving.tp
    assert memory.window_bytes(serving, Storing(), context) == each
    assert memory.token_bytes(serving, Storing()) == 0
    plan = memory.plan(serving, Request("decode", context), Storing(), H800)
    assert line(plan, "windows").bytes == plan.sequences * each and plan.bytes <= H800


def test_full_layers_beside_windows_take_pages():
    memory = memory_of("tiny-window")
    row = 2 * 2 * 32 * 4  # keys and values of 2 heads of 32 in float32; 3 layers of each attention
    assert memory.token_bytes(Serving(tp=1, dp=1), Storing()) == 3 * row
    assert memory.window_bytes(Serving(tp=1, dp=1), Storing(), 1000) == 3 * 64 * row
