"""Views and copies: the same numbers under another shape."""

from dsc.compiler.graph.dim import Dim, product, total
from dsc.compiler.graph.op import Op, Types, register, retyped, tensor


@register
class Unflatten(Op):
    """[..., a * b] -> [..., a, b]."""

    kind = "unflatten"
    is_view = True
    sizes: tuple[Dim, ...]

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(product(self.sizes)), f"{x.shape_text()} into {self.sizes}"
        return (retyped(x, *x.shape[:-1], *self.sizes),)


@register
class FlattenHeads(Op):
    """[..., a, b] -> [..., a * b]."""

    kind = "flatten_heads"
    is_view = True

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-2], x.shape[-2] * x.shape[-1]),)


@register
class FlattenTokens(Op):
    """[B, S, D] -> [T, D]."""

    kind = "flatten_tokens"
    is_view = True
    tokens: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, self.tokens, *x.shape[2:]),)


@register
class ViewAs(Op):
    """The shape of another tensor: [T, D] -> [B, S, D]."""

    kind = "view_as"
    is_view = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "other")

    def infer(self, inputs: Types) -> Types:
        x, other = tensor(inputs[0]), tensor(inputs[1])
        assert x.numel.same(other.numel), f"{x.shape_text()} as {other.shape_text()}"
        return (retyped(x, *other.shape),)


@register
class Split(Op):
    """[..., a + b] -> [..., a], [..., b]."""

    kind = "split"
    is_view = True
    sizes: tuple[Dim, ...]

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(total(list(self.sizes))), f"{x.shape_text()} into {self.sizes}"
        return tuple(retyped(x, *x.shape[:-1], size) for size in self.sizes)


@register
class Concat(Op):
    """[..., a], [..., b] -> [..., a + b]."""

    kind = "concat"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "y")

    def infer(self, inputs: Types) -> Types:
        x, y = tensor(inputs[0]), tensor(inputs[1])
        return (retyped(x, *x.shape[:-1], x.shape[-1] + y.shape[-1]),)


@register
class AddHeadDim(Op):
    """[B, S, R] -> [B, S, 1, R]: one head that all share."""

    kind = "add_head_dim"
    is_view = True

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], product(()), x.shape[-1]),)


@register
class ExpandHeads(Op):
    """[B, S, 1, R] -> [B, S, H, R], without a copy."""

    kind = "expand_heads"
    is_view = True
    heads: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-2], self.heads, x.shape[-1]),)


@register
class SkipFirst(Op):
    """[B, S, ...] -> [B, S - n, ...] without the first n positions."""

    kind = "skip_first"
    is_view = True
    count: int

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], x.shape[1] - self.count, *x.shape[2:]),)


@register
class LastPosition(Op):
    """[B, S, D] -> [B, 1, D]."""

    kind = "last_position"
    is_view = True

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], product(()), *x.shape[2:]),)


@register
class SkipLast(Op):
    """[B, S, ...] -> [B, S - n, ...] without the last n positions."""

    kind = "skip_last"
    is_view = True
    count: int

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], x.shape[1] - self.count, *x.shape[2:]),)
