"""Attention of packed tokens against pages of a cache: rows in, rows out, and a call for each group of texts."""

from collections.abc import Mapping
from dataclasses import field

from dsc.compiler.graph.dim import C, Dim, Int, Symbol
from dsc.compiler.graph.op import Op, OpClass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, ObjectType, TensorType
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.call import BlockCall, Signature, function_name
from dsc.compiler.ops.rope import RotaryTable

BATCH, GROUP, CACHES = ObjectType("Batch"), ObjectType("Group"), ObjectType("list[Tensor]")
ROWS = Symbol("rows")
"""Positions whose logits are asked for."""


@register
class WriteRows(Op):
    """What is kept of each new token, side by side, into its slot: [T, ...] each -> [pages, page, row]."""

    kind = "write_rows"
    names: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        return (*self.names, "batch", "pages")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("write_rows",)

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class ReadRows(Op):
    """The rows of a group's texts, in the type of x: [pages, page, row] -> [B, C, row]."""

    kind = "read_rows"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("pages", "group", "x")

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[2])
        return (TensorType((x.shape[0], C, tensor(inputs[0]).shape[-1]), x.dtype),)


@register
class VisibleAttention(CausalAttention):
    """softmax(q k^T * scale) v of S new tokens over those of all C that each may see."""

    kind = "visible_attention"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v", "group")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"visible_attention_{self.variant}",)

    def infer(self, inputs: Types) -> Types:
        return super().infer(inputs[:3])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return super().saved(inputs[:3], outputs)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every row, visible or not: 2 S C H (qk + v)."""
        q, k, v = (tensor(t) for t in inputs[:3])
        return q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3]) * 2


@register
class VisibleInWindow(VisibleAttention):
    """The same where each token sees the last `window` tokens only."""

    kind = "visible_in_window"
    window: Dim = field(kw_only=True)


@register
class SharedAttention(Op):
    """The same where all heads share keys and values: [B, S, H, E], [B, C, E], [B, C, L] -> [B, S, H, L]."""

    kind = "shared_attention"
    op_class = OpClass.ATTENTION
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v", "group")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("shared_attention",)

    def infer(self, inputs: Types) -> Types:
        q, k, v, _ = inputs
        assert tensor(q).shape[-1].same(tensor(k).shape[-1]), (q, k)
        return (retyped(q, *tensor(q).shape[:-1], tensor(v).shape[-1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """2 S C H (E + L)."""
        q, _, v, _ = inputs
        batch, new, heads, width = tensor(q).shape
        return batch * new * C * heads * (width + tensor(v).shape[-1]) * 2


@register
class AttendGroups(BlockCall):
    """A block that attends for one group of texts with equally many new tokens, called for each group of the batch."""

    kind = "attend_groups"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*self.signature.names[:-2], "batch", "pages")

    @property
    def function(self) -> str:
        return function_name(self.signature.class_name, self.signature.method)

    @property
    def heads(self) -> str:
        """Heads and the width of a result of each."""
        return ", ".join(str(dim) for dim in tensor(self.signature.outputs[0]).shape[2:])

    def bindings(self, inputs: Types) -> Mapping[str, Dim]:
        """As for texts with one new token each, once tokens are packed."""
        lead = tensor(inputs[0]).shape[:-2]
        batch, new = (*lead, Int(1))[:2]
        return {"B": batch, "S": new}

    def infer(self, inputs: Types) -> Types:
        """[T, H, V]; [B, S, H, V] before tokens are packed."""
        q, out = tensor(inputs[0]), tensor(self.signature.outputs[0])
        return (retyped(q, *q.shape[:-2], *out.shape[2:]),)


@register
class AttendGroupsEitherWay(AttendGroups):
    """The same where two blocks compute it, and which takes fewer operations depends on the group."""

    kind = "attend_groups_either_way"
    other: Signature
    """Of the block for many new tokens."""
    prefix: str = ""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("expands",)

    @property
    def other_function(self) -> str:
        return function_name(self.other.class_name, self.other.method)


@register
class AttendAnyGroups(AttendGroups):
    """The same for a batch that may have no groups: of a rank without texts, in a step of the others."""

    kind = "attend_any_groups"


@register
class AttendAnyGroupsEitherWay(AttendGroupsEitherWay):
    """The same for a batch that may have no groups."""

    kind = "attend_any_groups_either_way"


@register
class SelectRows(Op):
    """The positions that somebody asks for: [T, D] -> [rows, D]."""

    kind = "select_rows"
    op_class = OpClass.LOOKUP

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "rows")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[1]).shape, tensor(inputs[0]).shape[-1]),)


@register
class RotaryTableOnce(RotaryTable):
    """cos and sin of every position there can be: [2, positions, R / 2]."""

    kind = "rotary_table_once"
    positions: Dim = field(kw_only=True)
    embedding: str = field(kw_only=True)
    """Whose type and device the table has."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        return (TensorType((Int(2), self.positions, self.rotary_dim // 2), DType.FP32),)


@register
class GatherRope(Op):
    """The rows of the new tokens' positions: [2, positions, R] -> [2, T, R]."""

    kind = "gather_rope"
    op_class = OpClass.LOOKUP
    tokens: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("rope", "batch")

    def infer(self, inputs: Types) -> Types:
        rope = tensor(inputs[0])
        return (retyped(rope, rope.shape[0], self.tokens, rope.shape[-1]),)
