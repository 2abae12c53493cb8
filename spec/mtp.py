"""Multi-token prediction (DeepSeek-V3, section 2.2): extra layers that predict tokens further ahead, in training."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Section


class Mtp(Section):
    depth: Annotated[int, Field(ge=1, le=16)]
    """Tokens predicted beyond the next one, each by a layer of its own."""
    hidden: Literal["post_norm", "pre_norm"] = "post_norm"
    """Which hidden state enters: after the final norm (Hugging Face, vLLM) or before it (torchtitan)."""
    loss_weight: Annotated[float, Field(ge=0.0, le=1e6)] = 0.3
    """lambda of lambda / depth * sum of the depths' losses (equation 25)."""
