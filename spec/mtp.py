"""Multi-token prediction (DeepSeek-V3, section 2.2): extra layers that predict tokens further ahead, in training."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Section

Weight = Annotated[float, Field(ge=0.0, le=1e6)]


class LaterWeight(Section):
    """The weight of the loss in the last part of pre-training."""

    after_tokens: Annotated[int, Field(ge=1, le=10**18)]
    """Tokens trained on before it holds; a step that begins below them still has the first weight."""
    loss_weight: Weight
    """lambda from then on."""


class Mtp(Section):
    depth: Annotated[int, Field(ge=1, le=16)]
    """Tokens predicted beyond the next one, each by a layer of its own."""
    hidden: Literal["post_norm", "pre_norm"] = "post_norm"
    """Which hidden state enters: after the final norm (Hugging Face, vLLM) or before it (torchtitan)."""
    loss_weight: Weight = 0.3
    """lambda of lambda / depth * sum of the depths' losses (equation 25)."""
    later: LaterWeight | None = None
    """Another lambda after so many tokens (section 4.2), in pre-training alone; null: it stays."""
