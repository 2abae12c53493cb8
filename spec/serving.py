"""How ranks share a model that answers: a deployment has another shape than a training run."""

from dsc.spec.base import Count, Section


class Serving(Section):
    """Ranks of the package's engine; each writes texts of its own."""

    ep: Count = 1
    """Ranks that share the routed experts out among them; everything else is on each (DeepSeek-V3, section 3.4.2)."""
