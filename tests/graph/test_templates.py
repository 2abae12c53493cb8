"""Templates print and do not decide: what is emitted was settled by which ops the builders chose."""

import re
from pathlib import Path

import pytest

import dsc.templates
from dsc.compiler.driver import Program, build
from dsc.compiler.emit.kernels import kernel_files
from dsc.compiler.emit.package import file_printer
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import OPS
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.mtp import LaterWeight
from dsc.spec.placement import Placement
from dsc.spec.serving import Serving
from dsc.spec.zoo import MODELS, names

ROOT = Path(str(dsc.templates.__file__)).parent
EVERY = sorted(ROOT.rglob("*.jinja"))
CONDITION = re.compile(r"\{%-?\s*(?:el)?if\b(.*?)%\}|\{\{[^}]*?\sif\s(.*?)\}\}")
KIND = re.compile(r"\b(mla|gqa|mha|mqa|latent|grouped|dense|moe|swiglu|attention|ffn|kind)\b", re.IGNORECASE)


def conditions(text: str) -> list[str]:
    return [statement or expression for statement, expression in CONDITION.findall(text)]


def stems(folder: str) -> set[str]:
    return {path.name.removesuffix(".py.jinja") for path in (ROOT / folder).glob("*.py.jinja")}


@pytest.mark.parametrize("folder", ["ops", "helpers", "model"])
def test_there_are_no_conditions(folder: str) -> None:
    found = {path.name: conditions(path.read_text()) for path in (ROOT / folder).glob("*.jinja")}
    assert found and not any(found.values()), found


def test_no_condition_asks_for_a_kind_of_attention_or_feed_forward() -> None:
    models = [path for path in EVERY if path.parent.name != "kernels"]  # a kernel is for a kind
    asked = {path.name: [text for text in conditions(path.read_text()) if KIND.search(text)] for path in models}
    assert not any(asked.values()), {name: texts for name, texts in asked.items() if texts}


def test_conditions_are_found() -> None:
    text = '{% if op.kind == "mla" %}{%- elif x %}{{ "a" if spec.moe else "b" }}{% endif %}\nif python: pass'
    assert [bool(KIND.search(condition)) for condition in conditions(text)] == [True, False, True]


def test_every_op_kind_has_a_template_and_every_template_an_op_kind() -> None:
    assert stems("ops") == set(OPS)


def with_dims(name: str, nope: int, rope: int, value: int) -> ModelSpec:
    data = load(name).model_dump()
    data["attention"] |= {"qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value}
    return ModelSpec.model_validate(data)


def multi_head() -> ModelSpec:
    data = load("llama-3.1-8b").model_dump()
    data["attention"]["num_key_value_heads"] = data["attention"]["num_attention_heads"]
    return ModelSpec.model_validate(data)


def with_biases() -> ModelSpec:
    data = load("tiny-window").model_dump()
    for attention in data["attention"].values():
        attention["qkv_bias"] = True
    return ModelSpec.model_validate(data)


def multi_head_in_a_window() -> ModelSpec:
    data = load("mistral-7b").model_dump()
    data["attention"]["num_key_value_heads"] = data["attention"]["num_attention_heads"]
    return ModelSpec.model_validate(data)


def with_z_loss(name: str) -> ModelSpec:
    return load(name).model_copy(update={"z_loss": 0.001})


def with_clamp(name: str) -> ModelSpec:
    data = load(name).model_dump()
    data["ffn"]["swiglu_limit"] = 10.0
    return ModelSpec.model_validate(data)


def in_fp8(name: str) -> ModelSpec:
    data = load(name).model_dump()
    data["precision"]["linear"] = {"kind": "fp8_block"}
    return ModelSpec.model_validate(data)


def with_fp8_rows(name: str) -> ModelSpec:
    data = load(name).model_dump()
    data["precision"]["kv_cache"] = "fp8"
    return ModelSpec.model_validate(data)


def on_gpus(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"cluster": Machines(kind="h100", nodes=1)})


def shared_out(spec: ModelSpec, cluster: Machines, dp: int, *recompute: str) -> ModelSpec:
    pins = Placement(pp=1, tp=1, cp=1, ep=2, etp=1, dp=dp, zero=1, micro_batch=1, activations="bf16")
    pins = pins.model_copy(update={"recompute": list(recompute)})
    return spec.model_copy(update={"cluster": cluster, "placement": pins})


def in_two_hops(spec: ModelSpec, etp: int = 1) -> ModelSpec:
    """A copy of the experts on two nodes of four ranks each; layers are made again."""
    pins = {"pp": 1, "ep": 8 // etp, "etp": etp, "dp": 8, "zero": 1, "recompute": ["full"]}
    return ModelSpec.model_validate({**spec.model_dump(), "cluster": {"kind": "cpu", "nodes": 8}, "placement": pins})


def by_deepep(spec: ModelSpec) -> ModelSpec:
    """Tokens go to other ranks' experts by DeepEP."""
    data = spec.model_dump() | {"hidden_size": 256, "cluster": {"kind": "h100", "nodes": 1}}
    data["precision"]["parameters"] = "bf16"
    pins = {"pp": 1, "cp": 1, "tp": 1, "dp": 8, "ep": 8, "micro_batch": 1, "recompute": [], "dispatch": "deepep"}
    return ModelSpec.model_validate({**data, "placement": pins})


def in_slices(spec: ModelSpec) -> ModelSpec:
    """Two ranks share the width of each expert."""
    pins = {"pp": 1, "cp": 1, "dp": 2, "ep": 1, "etp": 2, "tp": 1, "micro_batch": 1, "recompute": []}
    return ModelSpec.model_validate({**spec.model_dump(), "cluster": {"kind": "cpu", "nodes": 2}, "placement": pins})


def in_context(spec: ModelSpec, **router: object) -> ModelSpec:
    """Two ranks share each sequence."""
    data = spec.model_dump()
    if router:
        data["ffn"]["moe"]["router"] |= router
    pins = {"pp": 1, "cp": 2, "dp": 1, "ep": 1, "tp": 1, "micro_batch": 1, "recompute": []}
    return ModelSpec.model_validate({**data, "cluster": {"kind": "cpu", "nodes": 2}, "placement": pins})


def in_tensor(spec: ModelSpec) -> ModelSpec:
    """Two ranks share heads, widths and the vocabulary."""
    pins = {"pp": 1, "cp": 1, "dp": 1, "ep": 1, "tp": 2, "micro_batch": 1, "recompute": []}
    return ModelSpec.model_validate({**spec.model_dump(), "cluster": {"kind": "cpu", "nodes": 2}, "placement": pins})


def in_both(spec: ModelSpec) -> ModelSpec:
    """Two ranks share heads, widths and the vocabulary, and two such pairs each sequence."""
    pins = {"pp": 1, "cp": 2, "dp": 1, "ep": 1, "tp": 2, "micro_batch": 1, "recompute": []}
    return ModelSpec.model_validate({**spec.model_dump(), "cluster": {"kind": "cpu", "nodes": 4}, "placement": pins})


def in_turns(balanced: bool, zero: int = 1) -> ModelSpec:
    """With pairs of a forward and a backward that take turns; layers with a balance loss, or without."""
    data = load("tiny").model_dump()
    if not balanced:
        del data["ffn"]["moe"]["router"]["balance"]
    pins = {"pp": 2, "vpp": 2, "ep": 2, "dp": 2, "zero": zero, "schedule": "dualpipe-v", "recompute": []}
    return ModelSpec.model_validate({**data, "cluster": {"kind": "cpu", "nodes": 4}, "placement": pins})


def learning(name: str, **rl: object) -> ModelSpec:
    return ModelSpec.model_validate(load(name).model_dump() | {"rl": {"max_new_tokens": 8, **rl}})


def documents_apart(name: str) -> ModelSpec:
    return ModelSpec.model_validate(load(name).model_dump() | {"training": {"documents": "apart"}})


def with_a_later_weight(name: str) -> ModelSpec:
    spec = load(name)
    assert spec.mtp is not None
    later = LaterWeight(after_tokens=1000, loss_weight=0.1)
    return spec.model_copy(update={"mtp": spec.mtp.model_copy(update={"later": later})})


def learning_with_layers_in_turn() -> ModelSpec:
    data = load("tiny-r1").model_dump()
    data["layers"] = [{"repeat": 2, "cycle": [{"ffn": "dense"}, {"ffn": "moe"}]}]
    return ModelSpec.model_validate(data)


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    """The zoo, and what no model of it has: heads whose q, k and v are as wide, and with wider v; a z-loss; a clamp;
    biases; documents that are kept apart; a weight of multi-token prediction that changes.

    All of them in plain PyTorch, and the zoo with the kernels of a GPU; there also FP8 experts without shared ones.
    One of them with its experts shared out over ranks, of CPUs and of GPUs, in FP8 too, and with results that backward
    makes again; some with pairs that take turns, in one of them with weights shared out; one whose tokens take two
    hops, one where DeepEP sends them; some that several ranks serve; some with sequences shared out, of several
    documents too, or heads and widths, or the width of experts.
    """
    specs = [load(name).model_copy(update={"cluster": None}) for name in names(MODELS)]
    odd = [with_dims("tiny", 16, 16, 32), with_dims("tiny", 8, 8, 32), multi_head(), multi_head_in_a_window()]
    odd += [with_z_loss("tiny"), with_clamp("tiny"), with_biases(), with_a_later_weight("tiny")]
    odd += [documents_apart("tiny"), learning("tiny-window"), learning("minicpm3-4b"), learning_with_layers_in_turn()]
    shared = [
        shared_out(load("tiny"), Machines(kind="cpu", nodes=4), 4, "mla_up_proj", "norms"),
        shared_out(load("tiny"), Machines(kind="h100", nodes=1), 8, "mla_up_proj", "norms"),
        shared_out(in_fp8("tiny"), Machines(kind="h100", nodes=1), 8, "experts", "norms"),
    ]
    shared += [in_turns(balanced=True), in_turns(balanced=False), in_turns(balanced=True, zero=3)]
    shared.append(by_deepep(in_fp8("tiny")))
    shared += [in_two_hops(load("tiny")), in_two_hops(load("tiny"), etp=2), in_slices(load("tiny"))]
    shared += [served_on_ranks("tiny"), served_on_ranks("mixtral-8x7b"), served_on_ranks("tiny", tp=2, redundant=4)]
    shared.append(on_gpus(served_on_ranks("deepseek-v3")))
    shared += [in_context(load("tiny")), in_context(load("llama-3.1-8b")), *map(in_context, odd[:2])]
    softmax = {"score": "softmax", "selection_bias": False, "balance": {"sequence_aux_loss_alpha": 0.0001}}
    shared.append(in_context(load("tiny"), **softmax))
    shared += [in_tensor(load("tiny")), in_tensor(with_z_loss("tiny")), in_both(load("tiny"))]
    shared += [in_context(documents_apart("tiny")), in_context(documents_apart("tiny-window"))]
    gpus = [
        *specs,
        *map(documents_apart, ("tiny", "llama-3.1-8b", "mistral-7b", "tiny-window")),
        in_fp8("mixtral-8x7b"),
        with_fp8_rows("deepseek-v3"),
    ]
    return [build(spec) for spec in [*specs, *odd, *map(on_gpus, gpus), *shared]]


def served_on_ranks(name: str, tp: int = 1, redundant: int = 0) -> ModelSpec:
    serving = Serving(ep=2, tp=tp, redundant_experts=redundant)
    return load(name).model_copy(update={"cluster": None, "serving": serving})


def policies_of(program: Program) -> tuple[Graph | None, ...]:
    return () if program.policies is None else (program.policies.alone, program.policies.shared)


def graphs_of(programs: list[Program]) -> list[Graph]:
    return [
        g
        for p in programs
        for g in (p.training, p.step.turns or p.step.graph, p.inference, p.serving, *policies_of(p), p.rows)
        if g is not None
    ]


def test_every_op_kind_is_used_by_some_model(programs: list[Program]) -> None:
    blocks = [block for graph in graphs_of(programs) for block in graph.blocks.values()]
    used = {node.op.kind for block in blocks for node in (*block.once, *block.nodes())}
    assert used == set(OPS)


def test_every_helper_is_used_by_some_model(programs: list[Program]) -> None:
    blocks = [block for graph in graphs_of(programs) for block in graph.blocks.values()]
    needed = {name for block in blocks for node in (*block.once, *block.nodes()) for name in node.op.requires}
    assert stems("helpers") == {name for name in needed if "." not in name}  # with dots: of another file


def test_every_kernel_is_used_by_some_model(programs: list[Program]) -> None:
    printers = [file_printer(p.spec, p.training) for p in programs]
    files = [kernel_files(f, (p.step.graph, p.serving), p.target) for f, p in zip(printers, programs, strict=True)]
    printed = {Path(file.path).stem for kernels in files for file in kernels}
    assert printed == stems("kernels")
