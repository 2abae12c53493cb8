"""Routed experts: sort the tokens by expert, multiply group by group, sum the results of each token."""

from dsc.compiler.graph.dim import Dim, Int, Product
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType, ValueType


@register
class SortByExpert(Op):
    """[B, S, K] expert ids -> the ids in order and the slot that each came from, [T * K] each; stable."""

    kind = "sort_by_expert"
    rows: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts",)

    def infer(self, inputs: Types) -> Types:
        ids = retyped(inputs[0], self.rows)
        return (ids, ids)


@register
class EveryExpert(Op):
    """0, 1, ... E - 1, where x lives: [E]."""

    kind = "every_expert"
    num_experts: Dim

    def infer(self, inputs: Types) -> Types:
        return (TensorType((self.num_experts,), DType.INT64),)


@register
class GroupEnds(Op):
    """Where each expert's rows end: [T * K] sorted ids -> [E]."""

    kind = "group_ends"
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("sorted_experts", "every_expert")

    def infer(self, inputs: Types) -> Types:
        return (TensorType((self.num_experts,), DType.INT32),)


@register
class RecordLoad(Op):
    """In training, add each expert's number of rows to the router's `expert_load`, which its bias update reads."""

    kind = "record_load"
    router: str
    """The attribute that holds the router."""
    once: bool = False
    """The method that holds it runs again in backward, which does not count."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.recompute.running_again",) if self.once else ()

    @property
    def condition(self) -> str:
        """Beside being in training."""
        return " and not running_again()" if self.once else ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("ends",)

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class SlotSource(Op):
    """The token that each slot reads and adds to, expanded over the components: [T * K] -> [T * K, D], no copy."""

    kind = "slot_source"
    top_k: Dim
    hidden_size: Dim

    @property
    def slots(self) -> str:
        """Of a token, as a divisor."""
        return f"({self.top_k})" if isinstance(self.top_k, Product) else str(self.top_k)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("order",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[0]).shape, self.hidden_size),)

    def memory(self, inputs: Types, outputs: Types) -> tuple[int | ValueType, ...]:
        """One number for each slot, however many components it is expanded to."""
        return (inputs[0],)


@register
class SlotWeights(Op):
    """The routing weight of each slot, in the type of the hidden state: [B, S, K] -> [T * K, 1]."""

    kind = "slot_weights"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("weights", "order", "x")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[2], *tensor(inputs[1]).shape, Int(1)),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)


@register
class GatherRows(Op):
    """A copy of its token for every chosen expert, in expert order: [T, D] -> [T * K, D]."""

    kind = "gather_rows"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens", "source")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[1]).shape),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch keeps what it gathered from too, only to know its shape."""
        index = Saved("input", 1)
        return (Saved("input", 0), index)


@register
class WeighSlots(Op):
    """Each slot times its routing weight, before the last product, which is linear: [T * K, I] by [T * K, 1]."""

    kind = "weigh_slots"
    recompute = "swiglu"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "weights")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("input", 1))


@register
class GroupedLinear(Op):
    """Each expert's rows times its own weight.T: [T * K, in] -> [T * K, out]."""

    kind = "grouped_linear"
    op_class = OpClass.GROUPED_PRODUCT
    name: str
    parts: tuple[str, ...]
    """The projections whose rows are stacked in the weight."""
    num_experts: Dim
    in_features: Dim
    out_features: Dim
    top_k: Dim
    dtype: DType

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "ends")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.grouped_mm.grouped_mm",)

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(self.in_features), f"{self.name}: {x.shape_text()} against {self.in_features}"
        return (retyped(x, x.shape[0], self.out_features),)

    @property
    def product(self) -> str:
        return "experts"

    def attribute(self) -> str:
        return self.name

    def parameters(self) -> tuple[Parameter, ...]:
        shape = (self.num_experts, self.out_features, self.in_features)
        active = (self.top_k, self.num_experts)
        return (Parameter(self.name, TensorType(shape, self.dtype), active=active),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * self.out_features * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("input", 1))


@register
class SplitGateUp(Op):
    """[T * K, 2 * I] -> [T * K, I] twice."""

    kind = "split_gate_up"
    is_view = True
    width: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(self.width * 2), x
        half = retyped(x, x.shape[0], self.width)
        return (half, half)


@register
class ScatterSum(Op):
    """The sum of each token's slots: [T * K, D] -> [T, D]."""

    kind = "scatter_sum"
    like = ("tokens",)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("rows", "source", "tokens")

    def infer(self, inputs: Types) -> Types:
        return (inputs[2],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)
