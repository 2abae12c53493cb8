"""Running another block: a submodule, a layer schedule, another method of the same class."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.dim import Dim, Int, Symbol
from dsc.compiler.graph.graph import ROOT_CLASS, Call
from dsc.compiler.graph.op import Types, record, register, tensor
from dsc.compiler.graph.types import TensorType, ValueType


@dataclass(frozen=True)
class Signature:
    """What a caller must know of a block."""

    class_name: str
    method: str
    names: tuple[str, ...]
    inputs: Types
    outputs: Types

    @classmethod
    def of(cls, block: Block) -> "Signature":
        names, inputs = zip(*((v.name, v.type) for v in block.inputs), strict=True) if block.inputs else ((), ())
        return cls(block.class_name, block.method, names, inputs, tuple(v.type for v in block.outputs))

    def narrow(self, kept: tuple[int, ...]) -> "Signature":
        return replace(self, outputs=tuple(self.outputs[index] for index in kept))

    def bindings(self, actual: Types) -> dict[str, Dim]:
        """The run-time symbols of the block, in the caller's terms."""
        found: dict[str, Dim] = {}
        for formal, given in zip(self.inputs, actual, strict=True):
            if isinstance(formal, TensorType):
                for dim, size in zip(formal.shape, tensor(given).shape, strict=True):
                    if isinstance(dim, Symbol) and dim.size is None and dim.definition is None:
                        found.setdefault(dim.name, size)
        return found

    def results(self, actual: Types, sizes: Mapping[str, Dim]) -> Types:
        """The output types, in the caller's terms."""
        bindings = {**self.bindings(actual), **sizes}
        return tuple(_substitute(result, bindings) for result in self.outputs)


def _substitute(value: ValueType, bindings: Mapping[str, Dim]) -> ValueType:
    if not isinstance(value, TensorType):
        return value
    return TensorType(tuple(dim.substitute(bindings) for dim in value.shape), value.dtype)


@record
class BlockCall(Call):
    signature: Signature

    @property
    def operands(self) -> tuple[str, ...]:
        return self.signature.names

    def callee(self) -> str:
        return f"{self.signature.class_name}.{self.signature.method}"

    def path(self) -> str:
        """Of the module that runs; empty for the same."""
        return ""

    def runs(self) -> tuple[tuple[str, str], ...]:
        return ((self.callee(), self.path()),)

    def bindings(self, inputs: Types) -> Mapping[str, Dim]:
        return {**self.signature.bindings(inputs), **self.sizes()}

    def sizes(self) -> Mapping[str, Dim]:
        return {}

    def infer(self, inputs: Types) -> Types:
        return self.signature.results(inputs, self.sizes())

    def narrow(self, kept: tuple[int, ...], inputs: tuple[Value, ...]) -> tuple["BlockCall", tuple[Value, ...]]:
        """The call of a callee that returns only some of its results, and the inputs that it still wants."""
        return replace(self, signature=self.signature.narrow(kept)), inputs

    def retarget(self, signature: Signature) -> "BlockCall":
        """The same call of a block that has changed."""
        return replace(self, signature=signature)


@register
class CallModule(BlockCall):
    """self.name(...), a submodule made with the given sizes."""

    kind = "call_module"
    name: str
    arguments: tuple[tuple[str, Dim], ...] = ()

    def sizes(self) -> Mapping[str, Dim]:
        return dict(self.arguments)

    def attribute(self) -> str:
        return self.name

    def path(self) -> str:
        return self.name


@register
class CallListed(BlockCall):
    """self.name[index](...), one of `count` submodules in a list."""

    kind = "call_listed"
    name: str
    index: int
    count: Dim

    def attribute(self) -> str:
        return self.name

    def path(self) -> str:
        return f"{self.name}.{self.index}"


@register
class CallMethod(BlockCall):
    """self.method(...), of the same class."""

    kind = "call_method"


@record
class LayerLoop(BlockCall):
    """A run of layers out of self.layers, x = layer(x, ...) for each: `classes` in a cycle, repeated `count` times.

    They have one signature, that of the first. `slice` selects them, [a:b] or empty for all.
    """

    classes: tuple[str, ...]
    count: Dim
    first: int
    slice: str

    def attribute(self) -> str:
        return "layers"

    def runs(self) -> tuple[tuple[str, str], ...]:
        keys = [f"{name}.{self.signature.method}" for name in self.classes] * self.count.value()
        return tuple((key, f"layers.{self.first + index}") for index, key in enumerate(keys))

    @property
    def made(self) -> str:
        """The items of the list of layers."""
        if len(self.classes) == 1:
            return f"{self.classes[0]}() for _ in range({self.count})"
        return f"layer() for _ in range({self.count}) for layer in ({', '.join(self.classes)})"

    @property
    def end(self) -> int:
        """The number of the layer behind the last."""
        return self.first + len(self.runs())

    def run(self, offset: int, count: int) -> "LayerLoop":
        """`count` of these layers, from the one at `offset` on."""
        classes = tuple(self.classes[(offset + index) % len(self.classes)] for index in range(count))
        alike = len(set(classes)) == 1
        first, repeats = self.first + offset, Int(count if alike else 1)
        return replace(self, classes=classes[:1] if alike else classes, count=repeats, first=first)

    def carried_on(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """The inputs of layers that follow these: what these make in place of what they read."""
        return (outputs[0], *inputs[1:])


@register
class RepeatLayers(LayerLoop):
    kind = "repeat_layers"


@register
class RepeatLayersSum(LayerLoop):
    """Layers that also return a loss, which is added up: the last operand is the sum so far."""

    kind = "repeat_layers_sum"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*self.signature.names, "total")

    def infer(self, inputs: Types) -> Types:
        return self.signature.results(inputs[:-1], {})

    def bindings(self, inputs: Types) -> Mapping[str, Dim]:
        return self.signature.bindings(inputs[:-1])

    def carried_on(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> tuple[Value, ...]:
        return (outputs[0], *inputs[1:-1], outputs[1])

    def narrow(self, kept: tuple[int, ...], inputs: tuple[Value, ...]) -> tuple[BlockCall, tuple[Value, ...]]:
        """Where the loss is not needed, neither is the sum."""
        if kept != (0,):
            return self, inputs
        layers = RepeatLayers(self.signature.narrow(kept), self.classes, self.count, self.first, self.slice)
        return layers, inputs[:-1]


@register
class RepeatLayersCached(LayerLoop):
    """Layers as functions, each with its own part of the caches, which are the last operand."""

    kind = "repeat_layers_cached"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*self.signature.names[:-1], "caches")

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(function_name(name, self.signature.method) for name in self.classes)


@register
class CycleLayersCached(RepeatLayersCached):
    """The same for layers of several classes in turn."""

    kind = "cycle_layers_cached"


@register
class CallFunction(BlockCall):
    """function(self.name, ...): a block printed as a function of the module that holds its parameters."""

    kind = "call_function"
    name: str
    """The attribute that holds the module; empty where the callee is another method of the same class."""
    arguments: tuple[tuple[str, Dim], ...] = ()

    def sizes(self) -> Mapping[str, Dim]:
        return dict(self.arguments)

    def path(self) -> str:
        return self.name

    @property
    def module(self) -> str:
        """The attribute, behind the name of the module that has it."""
        return f".{self.name}" if self.name else ""

    @property
    def function(self) -> str:
        return function_name(self.signature.class_name, self.signature.method)


@register
class CallListedFunction(BlockCall):
    """function(self.name[index], ...): the same for one of a list of modules."""

    kind = "call_listed_function"
    name: str
    index: int

    @property
    def function(self) -> str:
        return function_name(self.signature.class_name, self.signature.method)

    def path(self) -> str:
        return f"{self.name}.{self.index}"


@register
class RepeatFunctions(RepeatLayersCached):
    """Layers as functions, each with its own pages of the cache, which are the last operand."""

    kind = "repeat_functions"

    def infer(self, inputs: Types) -> Types:
        return super().infer((*inputs[:-1], self.signature.inputs[-1]))

    def bindings(self, inputs: Types) -> Mapping[str, Dim]:
        return super().bindings((*inputs[:-1], self.signature.inputs[-1]))


@register
class CycleFunctions(RepeatFunctions):
    """The same for layers of several classes in turn."""

    kind = "cycle_functions"


@register
class LoopFunctions(LayerLoop):
    """Layers as functions of their modules: x = layer(module, x, ...) for each."""

    kind = "loop_functions"

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(function_name(name, self.signature.method) for name in self.classes)


@register
class CycleLoopFunctions(LoopFunctions):
    """The same for layers of several classes in turn."""

    kind = "cycle_loop_functions"


@register
class LoopFunctionsSum(RepeatLayersSum):
    """Layers as functions that also return a loss, which is added up: the last operand is the sum so far."""

    kind = "loop_functions_sum"

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(function_name(name, self.signature.method) for name in self.classes)


@register
class CycleLoopFunctionsSum(LoopFunctionsSum):
    """The same for layers of several classes in turn."""

    kind = "cycle_loop_functions_sum"


def function_name(class_name: str, method: str) -> str:
    """LatentAttention.forward -> latent_attention, Model.backbone -> model_backbone, Model.forward -> model_forward."""
    snake = re.sub("(?<!^)(?=[A-Z])", "_", class_name).lower()
    return snake if method == "forward" and class_name != ROOT_CLASS else f"{snake}_{method}"
