"""Experts shared out over the ranks that serve: as in training, without gradients, and among all ranks there are."""

from dsc.compiler.graph.op import Op, Types, register
from dsc.compiler.ops.dispatch import AllToAll, ExchangeCounts
from dsc.compiler.ops.each_expert import COUNTS


@register
class TradeCounts(ExchangeCounts):
    """What each rank has for each of our experts: [E] -> [ranks, experts of a rank]."""

    kind = "trade_counts"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("trade_counts",)


@register
class SendRows(AllToAll):
    """Rows to the ranks that `to` says, as many from each as `of` says."""

    kind = "send_rows"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("send_rows",)


@register
class CountReceived(Op):
    """Rows that came for each of this rank's experts, as Python's numbers: [ranks, experts of a rank] -> experts."""

    kind = "count_received"
    waits = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("received",)

    def infer(self, inputs: Types) -> Types:
        return (COUNTS,)
