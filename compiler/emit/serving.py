"""infer/ of a package: weights and forward printed from the graph that serves, and the engine around them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from dsc.compiler.emit.classes import returns
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported, kernel_functions, module_body, requirements
from dsc.compiler.emit.prepare import packs, prepare_file, prepared_definitions
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.call import LayerLoop, RepeatFunctions, Signature, function_name
from dsc.compiler.ops.few_rows import FewRowMultiply
from dsc.compiler.ops.fused.codes import WeightCodes
from dsc.compiler.ops.fused.pages import ReadFp8Latents
from dsc.compiler.ops.paged import GROUP, SharedAttention, VisibleAttention, VisibleInWindow
from dsc.compiler.ops.policy import RecordExperts
from dsc.compiler.passes.divide import cut_dims
from dsc.compiler.passes.serve import DRAFT, FORWARD
from dsc.spec.model import ModelSpec
from dsc.spec.precision import CACHE_GROUP

DECODE = "infer/decode.py"
FILES = ("batch", "cache", "chat", "engine", "generate", "loop", "protocol", "sampling", "scheduler", "serve", "text")
PAGE_SIZE = 16  # tokens
PAGED, PAGE_OF_KERNELS = {"gqa_decode", "mla_decode"}, 64
"""Kernels that attend to pages, and the size of those: as wide as their tiles of tokens."""
SIZES = {
    "T": "T new tokens of all texts",
    "B": "B texts of a group",
    "S": "S new tokens of each",
    "C": "C rows of the longest",
}


def serving_files(
    files: FilePrinter, serving: Graph, training: Graph, model: Iterable[Definition], captures: bool
) -> list[File]:
    """`model` is what model.py defines, which these files import; `captures`: whether a GPU's steps are captured."""
    model = list(model)
    prepared = prepared_definitions(files, serving, training)
    guesses = DRAFT in serving.blocks
    kernels = {module for module, _ in kernel_functions(serving)}
    ops = [node.op for block in serving.blocks.values() for node in block.nodes()]
    recorded = _recorded(serving)
    marks = files.spec.tokens.reasoning
    ranks = files.spec.serving_ranks > 1
    optional = {"speculation": guesses, "graphs": captures, "routes": bool(recorded), "reasoning": marks is not None}
    copied = files.spec.serving is not None and files.spec.serving.redundant_experts > 0
    optional |= {**dict.fromkeys(("ranks", "share", "front"), ranks), "placement": copied}
    optional["layout"] = packs(serving)
    optional["compiled"] = any(isinstance(op, FewRowMultiply) for op in ops) and not (ranks or recorded)
    values = {
        "guesses": guesses,
        "ranks": ranks,
        "shares_experts": files.spec.serving is not None and files.spec.serving.ep > 1,
        "copies_experts": copied,
        "divides": files.spec.tensor_ranks > 1,
        "cut": cut_dims(training, serving) if files.spec.tensor_ranks > 1 else {},
        "windows": any(windows := _windows(serving)),
        "forgets": windows.pop() if len(windows) == 1 else "",
        "codes": any(isinstance(node.op, WeightCodes) for block in serving.blocks.values() for node in block.once),
        "replay": bool(recorded),
        "compiles": optional["compiled"],
        "captures": captures,
        "packs": optional["layout"],
        "routers": _routers(serving),
        "chosen": recorded[0] if recorded else "",
        "tempered": files.spec.rl is not None and files.spec.rl.temperature != 1,
        "reasons": marks is not None,
        "begin": json.dumps(marks and marks.begin, ensure_ascii=False),
        "end": json.dumps(marks and marks.end, ensure_ascii=False),
        "ordered": "latent_cache" in kernels,
        "begins": bool(kernels & PAGED),
        "masks": any(isinstance(op, VisibleAttention | SharedAttention) for op in ops),
        "page_size": PAGE_OF_KERNELS if kernels & PAGED else PAGE_SIZE,
    }
    chosen = [name for name, wanted in optional.items() if wanted]
    plain = [f"infer/{name}.py" for name in (*FILES, *chosen)]
    return [
        prepare_file(files, serving, prepared, model, SIZES),
        decode_file(files, serving, training, model, prepared),
        *(files.file(path, path, **values) for path in plain),
    ]


def decode_file(
    files: FilePrinter, serving: Graph, training: Graph, model: list[Definition], prepared: list[Definition]
) -> File:
    printer = Printer(files.templates, owner="module")
    parts = helpers(serving, printer, besides=set(requirements(training)))
    parts += [function(block, printer) for block in serving.blocks.values()]
    body = module_body([*parts, _caches(files, serving)])
    used = names(body) | {"torch", "Tensor"}
    ours = [(".prepare", part.name) for part in prepared]
    ours += [(".batch", "Batch"), (".batch", "Group"), (".cache", "PAGE_SIZE"), (".ranks", "Ranks")]
    taken = {name for _, name in ours}
    offered = imported(serving, "..", "..train.")
    offered += [("..model", part.name) for part in model if part.name not in taken]
    return files.file(
        DECODE,
        DECODE,
        legend=legend(serving.constants.symbols(), body, SIZES),
        imports=imports(used),
        local=local_imports(used, [*offered, *ours]),
        body=body,
    )


def function(block: Block, printer: Printer, narrowed: str = "") -> Definition:
    """A block as a function of its prepared weights, where it reads any; `narrowed`: the class that the module has."""
    lines = [f"    {line}".rstrip() for line in printer.body(block, block.doc or block.class_doc)]
    if narrowed:
        lines.insert(1, f"    assert isinstance({printer.owner}, {narrowed})")  # below a docstring of one line
    arguments = [f"{value.name}: {value.type.annotation}" for value in block.inputs]
    if re.search(rf"\b{printer.owner}\b", "\n".join(lines)):
        arguments.insert(0, f"{printer.owner}: {block.class_name}")
    name = function_name(block.class_name, block.method)
    return Definition(name, "\n".join([f"def {name}({', '.join(arguments)}) -> {returns(block)}:", *lines]))


def _caches(files: FilePrinter, serving: Graph) -> Definition:
    """The pages of every layer: how wide their rows are, and in which type where that is not the weights'."""
    parts = []
    for node in (node for block in serving.blocks.values() for node in block.nodes()):
        if isinstance(node.op, RepeatFunctions):
            layers = [serving.blocks[f"{name}.{node.op.signature.method}"] for name in node.op.classes]
            rows = ", ".join(_row(serving, Signature.of(layer)) for layer in layers)
            parts.append(f"[{rows}] * {node.op.count}")
    guesses = DRAFT in serving.blocks and "pages" in Signature.of(serving.blocks[DRAFT]).names
    parts += [f"[{_row(serving, Signature.of(serving.blocks[DRAFT]))}]"] if guesses else []
    text = files.templates.get_template("infer/caches.jinja").render(
        rows=" + ".join(parts), dtype=_dtype(files.spec, serving), guesses=guesses
    )
    return Definition("empty_caches", text)


def _row(serving: Graph, signature: Signature) -> str:
    """Elements of a row: numbers, or bytes of codes, their scales and the rotary part in bfloat16."""
    pages = tensor(signature.inputs[-1])
    if (read := _fp8_read(serving)) is None:
        return str(pages.shape[-1])
    latent, rotary = read.sizes
    return f"{latent} + {latent} // {CACHE_GROUP} * 4 + {rotary} * 2"


def _dtype(spec: ModelSpec, serving: Graph) -> str:
    """The type of the cache: the weights', unless the spec keeps rows narrower than float32 parameters, or as codes."""
    if _fp8_read(serving) is not None:
        return "torch.uint8"
    if spec.precision.kv_cache != "fp32" and spec.precision.parameters == "fp32":
        return "torch.bfloat16 if x.dtype is torch.float32 else x.dtype"
    return "x.dtype"


def _windows(serving: Graph) -> set[str]:
    """What the layers' attention is limited to, by name; an empty one where layers attend to all tokens."""
    forms = [block for block in serving.blocks.values() if GROUP in [value.type for value in block.inputs]]
    return {_window(form) for form in forms}


def _window(form: Block) -> str:
    ops = (node.op for node in form.nodes())
    return next((str(op.window) for op in ops if isinstance(op, VisibleInWindow)), "")


def _routers(serving: Graph) -> str:
    """How many routers record their choice when tokens pass the model, in the names of dims."""
    nodes = (node for _, block in serving.executions(FORWARD) for node in block.nodes())
    loops = [node.op for node in nodes if isinstance(node.op, LayerLoop)]
    turns = [(op.count, [key for key, _ in op.runs()[: len(op.classes)]]) for op in loops]
    found = [(count, sum(len(_recorded(serving, key)) for key in keys)) for count, keys in turns]
    return " + ".join(str(count) if routers == 1 else f"{routers} * {count}" for count, routers in found if routers)


def _recorded(serving: Graph, block: str = FORWARD) -> list[str]:
    """Experts per token of each router that records its choice when tokens pass a block, the model's by default."""
    nodes = (node for _, inner in serving.executions(block) for node in inner.nodes())
    return [str(tensor(node.inputs[0].type).shape[-1]) for node in nodes if isinstance(node.op, RecordExperts)]


def _fp8_read(serving: Graph) -> ReadFp8Latents | None:
    nodes = (node for block in serving.blocks.values() for node in block.nodes())
    return next((node.op for node in nodes if isinstance(node.op, ReadFp8Latents)), None)
