"""The root of the language: one model."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from dsc.spec.attention import Attention, OneOrSeveral
from dsc.spec.base import Count, Epsilon, KindName, LossWeight, Multiplier, Section, Spread
from dsc.spec.cluster import Machinery
from dsc.spec.ffn import DenseFfn, Ffn, MoeFfn
from dsc.spec.mtp import Mtp
from dsc.spec.placement import Placement
from dsc.spec.precision import Precision
from dsc.spec.rl import ReinforcementLearning
from dsc.spec.serving import Serving
from dsc.spec.tokens import Tokens
from dsc.spec.training import Training
from dsc.spec.workload import Workload

NAME_PATTERN = r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$"


def package_of(name: str) -> str:
    """The name of the emitted package: deepseek-v3 -> deepseek_v3."""
    return name.replace("-", "_").replace(".", "_")


class Norm(Section):
    """RMSNorm before each sublayer and before the head."""

    eps: Epsilon
    """Added to the mean square before the root."""


class LayerKind(Section):
    """What a layer is made of. Layer kinds differ by the axes named here."""

    attention: KindName | None = None
    """A name of `attention`; left out where there is one for all layers."""
    ffn: KindName
    """A name of `ffn`."""


class Repeated(Section):
    """A part of the layer schedule."""

    repeat: Annotated[int, Field(ge=1, le=10_000)]
    """How often it follows itself."""


class LayerGroup(LayerKind, Repeated):
    """`repeat` layers of one kind."""

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        return (self,)


class LayerCycle(Repeated):
    """Layers of several kinds in turn, the whole turn `repeat` times."""

    cycle: Annotated[list[LayerKind], Field(min_length=2, max_length=256)]
    """The layers of one turn."""

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        return tuple(self.cycle)


def _form(value: object) -> str:
    return "cycle" if isinstance(value, LayerCycle) or (isinstance(value, dict) and "cycle" in value) else "group"


Layers = Annotated[Annotated[LayerGroup, Tag("group")] | Annotated[LayerCycle, Tag("cycle")], Discriminator(_form)]


class Layer(NamedTuple):
    """The names of a layer's parts."""

    attention: str
    ffn: str


class AddResidual(Section):
    """x + multiplier * sublayer(norm(x))."""

    kind: Literal["add"] = "add"
    multiplier: Multiplier = 1.0
    """Of each sublayer's output (MiniCPM's scale_depth / sqrt(layers))."""


class ModelSpec(Section):
    """A decoder-only language model."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
    """The package is named after it, with '_' for '-' and '.'."""
    vocab_size: Count
    """Tokens that there are: rows of the embedding and of the head."""
    tokens: Tokens = Tokens()
    """Ids of special tokens, where the tokenizer that the model was trained with has them."""
    hidden_size: Count
    """Width of the stream between layers."""
    max_position_embeddings: Count
    """Longest sequence, tokens."""
    tie_word_embeddings: bool = False
    """Whether the head's weights are the embedding's."""
    initializer_range: Spread = 0.02
    """Standard deviation of freshly drawn weights."""
    embedding_multiplier: Multiplier = 1.0
    """Multiplies the embedding's output (MiniCPM's scale_emb)."""
    logit_multiplier: Multiplier = 1.0
    """Multiplies the hidden state before the head (MiniCPM's dim_model_base / hidden_size)."""
    z_loss: LossWeight | None = None
    """Adds z_loss * log(sum(exp(logits)))^2 to the cross-entropy of each token (PaLM, arXiv 2204.02311, section 5)."""
    norm: Norm
    """RMSNorm before each sublayer and before the head."""
    residual: AddResidual = AddResidual()
    """How a sublayer's output joins the stream."""
    attention: OneOrSeveral
    """How tokens look at each other: one attention, or several by the names that layers give."""
    ffn: Ffn
    """What happens to each token by itself: the feed-forwards that layers may name."""
    layers: Annotated[list[Layers], Field(min_length=1, max_length=256)]
    """Every layer, first to last, in groups of one kind and cycles of several."""
    mtp: Mtp | None = None
    """Layers that predict tokens further ahead in training (DeepSeek-V3, section 2.2); null for none."""
    precision: Precision = Precision()
    """What each class of tensors is kept and multiplied in."""
    rl: ReinforcementLearning | None = None
    """Post-training on verifiable rewards: the package learns from its own answers (GRPO); null for none."""
    serving: Serving | None = None
    """Several ranks that answer together; null: the engine runs in one process."""
    workload: Workload = Workload()
    """What the model is asked to do: costs per token are counted at these sizes."""
    training: Training = Training()
    """What the trainer reads in a row, and does at steps that are not like the others."""
    cluster: Machinery | None = None
    """The machines to plan for and to choose kernels for; null for plain PyTorch on one device."""
    placement: Placement | None = None
    """Pins of the plan: what the planner may not choose; null leaves all to it."""

    @property
    def num_layers(self) -> int:
        return sum(group.repeat * len(group.kinds) for group in self.layers)

    @property
    def serving_ranks(self) -> int:
        """Processes of the package's engine."""
        return self.serving.ranks if self.serving is not None else 1

    @property
    def tensor_ranks(self) -> int:
        """Processes of the engine that write the same texts together."""
        return self.serving.tp if self.serving is not None else 1

    @property
    def attentions(self) -> dict[str, Attention]:
        """Each attention by the name that layers give; a single one, which has none, under its kind."""
        return self.attention if isinstance(self.attention, dict) else {self.attention.kind: self.attention}

    @property
    def ffns(self) -> dict[str, DenseFfn | MoeFfn]:
        """Each feed-forward by the name that layers give."""
        return self.ffn.named()

    def attention_key(self, name: str) -> tuple[str, ...]:
        """Where the spec describes an attention."""
        return ("attention", name) if isinstance(self.attention, dict) else ("attention",)

    def layer(self, kind: LayerKind) -> Layer:
        """The parts of a kind of layer, an attention that it leaves out filled in."""
        return Layer(kind.attention or next(iter(self.attentions)), kind.ffn)

    @property
    def schedule(self) -> tuple[Layer, ...]:
        """Every layer, first to last."""
        return tuple(self.layer(kind) for group in self.layers for kind in group.kinds * group.repeat)

    @property
    def package_name(self) -> str:
        return package_of(self.name)

    @property
    def ffn_kinds(self) -> tuple[str, ...]:
        """Dense or moe, of every layer."""
        kinds = {name: section.kind for name, section in self.ffns.items()}
        return tuple(kinds[layer.ffn] for layer in self.schedule)

    def dense(self) -> DenseFfn:
        """The dense feed-forward, of several the first; not for specs without one."""
        return next(section for section in self.ffns.values() if isinstance(section, DenseFfn))

    def moe(self) -> MoeFfn:
        """The mixture of experts, of several the first; not for specs without one."""
        return next(section for section in self.ffns.values() if isinstance(section, MoeFfn))
