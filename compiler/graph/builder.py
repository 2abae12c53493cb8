"""Building a block: one call of `add` for each line that the emitted method will have."""

from __future__ import annotations

from collections.abc import Sequence

from dsc.compiler.graph.block import INPUT, Block, CachedValue, Node, Value, in_order
from dsc.compiler.graph.dim import Dim, Symbol
from dsc.compiler.graph.op import Op
from dsc.compiler.graph.types import DType, ValueType


class BlockBuilder:
    """Collects the nodes of one method in reading order."""

    def __init__(
        self,
        class_name: str,
        doc: str = "",
        *,
        class_doc: str = "",
        method: str = "forward",
        arguments: tuple[Symbol, ...] = (),
    ) -> None:
        self._class_name, self._method, self._arguments = class_name, method, arguments
        self._doc, self._class_doc = doc, class_doc
        self._inputs: list[Value] = []
        self._nodes: list[Node] = []
        self._ids: set[str] = set()
        self._cached: list[CachedValue] = []
        self._paragraph = False

    def input(self, name: str, type: ValueType) -> Value:
        """An argument of the method."""
        self._inputs.append(Value(INPUT, len(self._inputs), name, type))
        return self._inputs[-1]

    def paragraph(self) -> None:
        """A blank line before the next node."""
        self._paragraph = bool(self._nodes)

    def add(self, name: str, op: Op, *inputs: Value) -> Value:
        """A node with one result, in the variable `name`."""
        (value,) = self.add_many((name,), op, *inputs)
        return value

    def add_many(self, names: Sequence[str], op: Op, *inputs: Value) -> tuple[Value, ...]:
        """A node with as many results as names (none for an effect)."""
        node_id = self._fresh(names[0] if names else op.kind)
        types = op.infer(tuple(value.type for value in inputs))
        outputs = tuple(
            Value(node_id, index, name, type) for index, (name, type) in enumerate(zip(names, types, strict=True))
        )
        self._nodes.append(Node(node_id, op, inputs, outputs, self._paragraph))
        self._paragraph = False
        return outputs

    def keep(self, value: Value, dtype: DType, has_fp8_form: bool = False, window: Dim | None = None) -> None:
        """Inference caches this value of every token, or of the last `window` of them."""
        self._cached.append(CachedValue(value, dtype, has_fp8_form, window))

    def finish(self, *outputs: Value) -> Block:
        return Block(
            self._class_name,
            self._method,
            self._doc,
            self._class_doc,
            tuple(self._inputs),
            outputs,
            in_order(tuple(self._nodes)),
            self._arguments,
            tuple(self._cached),
        )

    def _fresh(self, name: str) -> str:
        """Ids follow the variables; a variable bound again gets a number: q_latent, q_latent.2, ..."""
        candidate, count = name, 1
        while candidate in self._ids:
            count += 1
            candidate = f"{name}.{count}"
        self._ids.add(candidate)
        return candidate
