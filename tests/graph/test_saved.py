"""What the ops say that they save for backward is what autograd saves: the same memory, storage by storage.

Each block of the emitted model runs on a CPU under saved_tensors_hooks. Storages count once, parameters not at all,
and neither do the few bytes that an operation keeps for itself, such as the total weight of a cross-entropy.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dsc.compiler.driver import Program, build, emit
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.saved import saved_bytes, saved_storages
from dsc.compiler.graph.types import DType
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]
Sizes = Mapping[str, int]
Memory = Counter[tuple[int, str]]

DTYPES = {
    DType.FP32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.FP8: torch.float8_e4m3fn,
    DType.INT64: torch.int64,
    DType.INT32: torch.int32,
    DType.BOOL: torch.bool,
}
B, S = 2, 24
SMALL = 16  # bytes

# A zoo model, and what is changed in its attention: between them every attention variant and every router, and on GPUs
# products in FP8 in each of them.
CASES: dict[str, tuple[str, Mapping[str, int]]] = {
    "latent, v padded": ("tiny", {}),
    "latent, q and k padded": ("tiny", {"v_head_dim": 24}),
    "latent, equal heads": ("tiny", {"v_head_dim": 20}),
    "latent, no query latent": ("deepseek-v2-lite", {}),
    "groups by their best expert": ("deepseek-v2", {}),
    "grouped heads": ("llama-3.1-8b", {}),
    "as many key heads": ("llama-3.1-8b", {"num_key_value_heads": 4}),
    "norms on q and k": ("qwen3-30b-a3b", {}),
    "scaled residuals, tied head": ("minicpm3-4b", {}),
    "only experts": ("mixtral-8x7b", {}),
    "only experts, in FP8": ("mixtral-8x7b", {}),
    "latent, in FP8": ("deepseek-v3", {}),
    "latent, no query latent, in FP8": ("deepseek-v2-lite", {}),
    "grouped heads, in FP8": ("llama-3.1-8b", {}),
    "grouped heads, z-loss": ("llama-3.1-8b", {}),
    "latent, clamped": ("tiny", {}),
}


@dataclass
class Recorder:
    """Storages that autograd saves while a module runs, with the lines of model.py that saved them."""

    source: str
    parameters: set[int]
    lines: dict[int, list[str]] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)

    def pack(self, x: Tensor) -> Tensor:
        address = x.untyped_storage().data_ptr()
        if address not in self.parameters and x.untyped_storage().nbytes() > SMALL:
            self.tensors.setdefault(address, x)
            self.lines.setdefault(address, []).append(self._line())
        return x

    def _line(self) -> str:
        frame = sys._getframe(2)
        while frame.f_back and (frame.f_code.co_filename != self.source or "self" not in frame.f_locals):
            frame = frame.f_back
        return Path(self.source).read_text().splitlines()[frame.f_lineno - 1].strip()

    def memory(self) -> Memory:
        return Counter((x.untyped_storage().nbytes(), str(x.dtype)[6:]) for x in self.tensors.values())

    def table(self) -> str:
        rows = [f"  {x.untyped_storage().nbytes():8}  {self.lines[a]}" for a, x in self.tensors.items()]
        return "\n".join(["autograd saved", *rows])


@pytest.fixture(scope="module", params=CASES)
def spec(request: pytest.FixtureRequest, shrunk: Callable[[ModelSpec], ModelSpec]) -> ModelSpec:
    name, changes = CASES[request.param]
    data = shrunk(load(name)).model_dump()
    data["attention"] |= changes
    if request.param.endswith("in FP8"):
        data["precision"]["linear"] = {"kind": "fp8_block"}
    if request.param.endswith("z-loss"):
        data["z_loss"] = 0.001
    if request.param.endswith("clamped"):
        data["ffn"]["swiglu_limit"] = 10.0
    return ModelSpec.model_validate(data)


@pytest.fixture(scope="module", params=[("fp32", None), ("bf16", None), ("bf16", "h100"), ("fp32", "h100")], ids=str)
def program(request: pytest.FixtureRequest, spec: ModelSpec) -> Program:
    """Without kernels and with them: their operators save on a CPU what they save on a GPU."""
    parameters, kind = request.param
    precision = spec.precision.model_copy(update={"parameters": parameters})
    cluster = kind and Machines(kind=kind, nodes=1)
    return build(spec.model_copy(update={"precision": precision, "cluster": cluster}))


def claims(graph: Graph, block: Block, sizes: Sizes) -> tuple[Memory, str]:
    storages = saved_storages(graph, block.key)
    sized = [(storage.type.bytes.value(sizes), str(DTYPES[storage.type.dtype])[6:]) for storage in storages]
    rows = [f"  {size:8}  {storage.place}" for (size, _), storage in zip(sized, storages, strict=True)]
    return Counter(entry for entry in sized if entry[0] > SMALL), "\n".join([f"{block.key} claims", *rows])


def argument(value: Value, model: ModuleType, sizes: Sizes) -> Tensor:
    type = tensor(value.type)
    shape = [dim.value(sizes) for dim in type.shape]
    if value.name == "rope":
        return model.spread_pairs(model.rotary_table(S, torch.empty(0)))
    if value.name == "labels":  # as the trainer cuts them
        return torch.randint(0, model.VOCAB_SIZE, (B, S + 1))[:, 1:]
    if value.name == "experts":
        return torch.randint(0, model.NUM_EXPERTS, shape)
    if type.dtype is DType.INT64:
        return torch.randint(0, model.VOCAB_SIZE, shape)
    return torch.randn(shape, dtype=DTYPES[type.dtype], requires_grad=True)


def instance(root: nn.Module, block: Block) -> nn.Module:
    return next(module for module in root.modules() if type(module).__name__ == block.class_name)


def test_claims_are_what_autograd_saves(program: Program, emitted: Callable[[Mapping[str, str]], Importer]) -> None:
    model = emitted(emit(program))("model")
    torch.manual_seed(0)
    root = model.Model().to(torch.bfloat16 if program.spec.precision.parameters == "bf16" else torch.float32)
    known = {t.untyped_storage().data_ptr() for t in [*root.parameters(), *root.buffers()]}
    graph = program.training
    for block in graph.blocks.values():
        if not block.outputs:
            continue
        module = instance(root, block)
        width = {"width": module.gate_proj.out_features} if block.arguments else {}
        sizes = {"B": B, "S": S, **width}
        arguments = [argument(value, model, sizes) for value in block.inputs]
        recorder = Recorder(str(model.__file__), known)
        with torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda x: x):
            results = getattr(module, block.method)(*arguments)
        claimed, table = claims(graph, block, sizes)
        assert claimed == recorder.memory(), f"{table}\n{recorder.table()}"
        del results


def test_bytes_are_the_sum_of_the_storages(program: Program) -> None:
    sizes = {"B": B, "S": S}
    storages = saved_storages(program.training, "Model.loss")
    total = sum(storage.type.bytes.value(sizes) for storage in storages)
    assert saved_bytes(program.training, "Model.loss").value(sizes) == total
    assert len({storage.place for storage in storages}) == len(storages)


def test_fused_kernels_keep_less(spec: ModelSpec) -> None:
    clusters = (None, Machines(kind="h100", nodes=1))
    graphs = [build(spec.model_copy(update={"cluster": cluster})).training for cluster in clusters]
    plain, fused = (saved_bytes(graph, "Model.loss") for graph in graphs)
    for length in (128, 4096):  # whole blocks of FP8
        sizes = {"B": 1, "S": length}
        assert fused.value(sizes) < plain.value(sizes)


def test_nothing_that_is_saved_grows_with_the_square_of_the_sequence(program: Program) -> None:
    names = [name for name in saved_bytes(program.training, "Model.loss").polynomial() if name]
    assert all(name.count("S") <= 1 and name.count("B") == 1 for name in names if name != ("S",))
