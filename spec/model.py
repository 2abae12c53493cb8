"""The root of the language: one model."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.attention import Attention
from dsc.spec.base import Count, NonNegativeFloat, PositiveFloat, Section
from dsc.spec.cluster import Machines
from dsc.spec.ffn import DenseFfn, Ffn, MoeFfn
from dsc.spec.mtp import Mtp
from dsc.spec.placement import Placement
from dsc.spec.precision import Precision
from dsc.spec.workload import Workload

NAME_PATTERN = r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$"


class Norm(Section):
    """RMSNorm before each sublayer and before the head."""

    eps: PositiveFloat
    """Added to the mean square before the root."""


class LayerGroup(Section):
    """`repeat` layers of one kind. Layer kinds differ by the axes named here."""

    repeat: Annotated[int, Field(ge=1, le=10_000)]
    """How many of them follow each other."""
    ffn: Literal["dense", "moe"]
    """The feed-forward, by its name under `ffn`."""


class AddResidual(Section):
    """x + multiplier * sublayer(norm(x))."""

    kind: Literal["add"] = "add"
    multiplier: PositiveFloat = 1.0
    """Of each sublayer's output (MiniCPM's scale_depth / sqrt(layers))."""


class ModelSpec(Section):
    """A decoder-only language model."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
    """The package is named after it, with '_' for '-' and '.'."""
    vocab_size: Count
    """Tokens that there are: rows of the embedding and of the head."""
    hidden_size: Count
    """Width of the stream between layers."""
    max_position_embeddings: Count
    """Longest sequence, tokens."""
    tie_word_embeddings: bool = False
    """Whether the head's weights are the embedding's."""
    initializer_range: NonNegativeFloat = 0.02
    """Standard deviation of freshly drawn weights."""
    embedding_multiplier: PositiveFloat = 1.0
    """Multiplies the embedding's output (MiniCPM's scale_emb)."""
    logit_multiplier: PositiveFloat = 1.0
    """Multiplies the hidden state before the head (MiniCPM's dim_model_base / hidden_size)."""
    z_loss: PositiveFloat | None = None
    """Adds z_loss * log(sum(exp(logits)))^2 to the cross-entropy of each token (PaLM, arXiv 2204.02311, section 5)."""
    norm: Norm
    """RMSNorm before each sublayer and before the head."""
    residual: AddResidual = AddResidual()
    """How a sublayer's output joins the stream."""
    attention: Attention
    """How tokens look at each other."""
    ffn: Ffn
    """What happens to each token by itself: the feed-forwards that layers may name."""
    layers: Annotated[list[LayerGroup], Field(min_length=1, max_length=256)]
    """Every layer, first to last, in groups of one kind."""
    mtp: Mtp | None = None
    """Layers that predict tokens further ahead in training (DeepSeek-V3, section 2.2); null for none."""
    precision: Precision = Precision()
    """What each class of tensors is kept and multiplied in."""
    workload: Workload = Workload()
    """What the model is asked to do: costs per token are counted at these sizes."""
    cluster: Machines | None = None
    """The machines to plan for and to choose kernels for; null for plain PyTorch on one device."""
    placement: Placement | None = None
    """Pins of the plan: what the planner may not choose; null leaves all to it."""

    @property
    def num_layers(self) -> int:
        return sum(group.repeat for group in self.layers)

    @property
    def package_name(self) -> str:
        """The name of the emitted package: deepseek-v3 -> deepseek_v3."""
        return self.name.replace("-", "_").replace(".", "_")

    def dense(self) -> DenseFfn:
        """The dense feed-forward; checked specs have it wherever a layer names it."""
        assert self.ffn.dense is not None
        return self.ffn.dense

    def moe(self) -> MoeFfn:
        """The mixture of experts; checked specs have it wherever a layer names it."""
        assert self.ffn.moe is not None
        return self.ffn.moe
