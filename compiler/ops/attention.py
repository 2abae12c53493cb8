"""Scaled dot-product attention over heads, causal."""

from dataclasses import field

from dsc.compiler.graph.dim import Beyond, Dim
from dsc.compiler.graph.op import Op, OpClass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class CausalAttention(Op):
    """Causal attention: q [B, S, H, N], k [B, S, J, N], v [B, S, J, V] -> [B, S, H, V].

    `variant` names the helper: which dims are padded to which, and whether key heads are shared, is decided here
    at compile time (PyTorch's fused kernels want equal head dims).
    """

    kind = "causal_attention"
    op_class = OpClass.ATTENTION
    variant: str
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{self.kind}_{self.variant}",)

    def infer(self, inputs: Types) -> Types:
        q, k, v = (tensor(t) for t in inputs)
        assert q.shape[-1].same(k.shape[-1]) and k.shape[-2].same(v.shape[-2]), (q, k, v)
        return (retyped(q, *q.shape[:-1], v.shape[-1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products of half a square each: S^2 H (qk + v)."""
        q, v = tensor(inputs[0]), tensor(inputs[2])
        return q.shape[0] * q.shape[1] * q.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch's fused attention keeps what it was given, padded where it was padded; no kernel keeps S x S."""
        q, k, v = (tensor(t) for t in inputs)
        logsumexp = Saved("own", 0, TensorType((q.shape[0], q.shape[2], q.shape[1]), DType.FP32))
        given: tuple[Saved, ...] = (Saved("input", 0), Saved("input", 1), Saved("input", 2))
        result = Saved("output", 0)
        if self.variant == "padded_v":
            given = (*given[:2], Saved("own", 1, retyped(v, *v.shape[:-1], q.shape[-1])))
            result = Saved("own", 2, q)
        if self.variant == "padded_qk":
            wide = (retyped(t, *t.shape[:-1], v.shape[-1]) for t in (q, k))
            given = (*(Saved("own", 1 + index, type) for index, type in enumerate(wide)), given[2])
        return (*given, result, logsumexp)

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        """Gradients of what was padded, of which one goes before that of the last operand comes. Where v was padded,
        the result's is padded too, and goes before that of v comes."""
        q, k, v = (tensor(t) for t in inputs[:3])
        if self.variant == "padded_v":
            return retyped(v, *v.shape[:-1], q.shape[-1]), retyped(q, *q.shape[:-1], q.shape[-1] - v.shape[-1])
        if self.variant == "padded_qk":
            return retyped(k, *k.shape[:-1], v.shape[-1]), retyped(q, *q.shape[:-1], v.shape[-1] - q.shape[-1])
        return ()

    def cached(self) -> Op:
        """What it becomes where keys and values come from the cache."""
        return CachedAttention(self.variant, self.prefix)


@register
class WindowedAttention(CausalAttention):
    """The same where a token sees the last `window` tokens only, itself included."""

    kind = "windowed_attention"
    window: Dim = field(kw_only=True)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products of half a square each, less the half square before the window: max(S - W, 0) on a side."""
        q, v = tensor(inputs[0]), tensor(inputs[2])
        before = Beyond(q.shape[1], self.window)
        area = q.shape[1] * q.shape[1] - before * before
        return q.shape[0] * area * q.shape[2] * (q.shape[3] + v.shape[3])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch's operator turns the mask into numbers that it adds to the logits, and keeps those too."""
        q = tensor(inputs[0])
        return (*super().saved(inputs, outputs), Saved("own", 3, TensorType((q.shape[1], q.shape[1]), q.dtype)))

    def cached(self) -> Op:
        return CachedWindowedAttention(self.variant, self.prefix)


@register
class CachedAttention(Op):
    """The same for S new tokens against all C that the cache holds; query s sees the keys up to its own position."""

    kind = "cached_attention"
    op_class = OpClass.ATTENTION
    variant: str
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"cached_attention_{self.variant}",)

    def infer(self, inputs: Types) -> Types:
        q, v = tensor(inputs[0]), tensor(inputs[2])
        return (retyped(q, *q.shape[:-1], v.shape[-1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every cached token: 2 S C H (qk + v), causal or not."""
        q, k, v = (tensor(t) for t in inputs)
        return q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3]) * 2


@register
class CachedWindowedAttention(CachedAttention):
    """The same in a window, against what the ring gave: the plain helper, which counts positions from the last."""

    kind = "cached_windowed_attention"

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"windowed_attention_{self.variant}",)
