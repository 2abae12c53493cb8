"""How ranks share a model that answers: a deployment has another shape than a training run."""

from dsc.spec.base import Count, NonNegativeCount, Section


class Serving(Section):
    """Ranks of the package's engine."""

    ep: Count = 1
    """Ranks that share the routed experts out among them: all that there are (DeepSeek-V3, section 3.4.2)."""
    redundant_experts: NonNegativeCount = 0
    """Experts of each mixture that have a second place on some rank, by the loads of earlier runs (DeepSeek-V3, section
    3.4.2); one that is asked for most may have several."""
    tp: Count = 1
    """Ranks of a group that writes the same texts together: each has some of the heads, of the width of dense layers
    and of the vocabulary. A cache of latents, which have no heads, is whole on each. Groups have their own texts."""

    @property
    def ranks(self) -> int:
        """Processes of the engine."""
        return max(self.ep, self.tp)
