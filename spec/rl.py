"""Reinforcement learning on verifiable rewards: GRPO (arXiv 2402.03300, section 4.1), and what later papers changed.

Defaults are DeepSeek-R1's where it publishes a number (Nature 645, 633, 2025, doi 10.1038/s41586-025-09422-z, Methods,
training details of the first RL stage; arXiv 2501.12948 v2 has the same):

- published: 16 outputs a question of at most 32,768 tokens, temperature 1, clip 10, KL 0.001, a new reference every 400
  steps, one epoch, advantages divided by the deviation (equation 3); with the learning rate 3e-6 and 32 questions, so
  512 outputs, a step, which are defaults of train/grpo.py. The second stage has temperature 0.7; R1-Zero has no clip
  that is published, and 65,536 tokens from step 8,200 on
- done otherwise: a rollout there is 8,192 outputs, learned in 16 steps of 512; here each step draws its own
- not published, or not done there: clipping that is wider on one side, importance_cap, router_replay, overlong_mask,
  length_penalty, warm-up, weight decay and the gradient's largest norm
- its equation 1 has one ratio for a whole output; `ratio` token and `denominator` sequences are DeepSeekMath's (arXiv
  2402.03300, equation 3), which it names as its method and which publishes a learning rate of 1e-6, KL 0.04, 64 outputs
  of at most 1,024 tokens, batches of 1,024 and one update each (section 4.2), but no clip
"""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, Section

Clip = Annotated[float, Field(gt=0.0, le=1e6)]


class LengthPenalty(Section):
    """Takes reward from long answers before they are cut off (DAPO, arXiv 2503.14476, equation 13)."""

    buffer: Count
    """The last tokens of max_new_tokens, over which the penalty rises from 0 to weight."""
    weight: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    """Taken from the reward of an answer of max_new_tokens."""


class ReinforcementLearning(Section):
    """The policy answers each question several times; what scores above its group's mean becomes likelier."""

    group_size: Annotated[int, Field(ge=2, le=65536)] = 16
    """Answers to each question, the group whose mean is the baseline (DeepSeek-R1: 16; DeepSeekMath: 64)."""
    max_new_tokens: Count = 32768
    """Longest answer; longer ones are cut off there (DeepSeek-R1: 32,768)."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Of the answers; training sees the distribution that they are drawn from (DeepSeek-R1: 1, then 0.7)."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's probability ratio, or the whole answer's (GSPO, arXiv 2507.18071, equation 7)."""
    clip_low: Clip = 10.0
    """Ratios below 1 - clip_low earn no more; from 1 on it clips nothing (DeepSeek-R1: 10)."""
    clip_high: Clip = 10.0
    """Ratios above 1 + clip_high earn no more (DeepSeek-R1: 10; DAPO: 0.28 beside a clip_low of 0.2)."""
    kl: Annotated[float, Field(ge=0.0, le=1e6)] = 0.001
    """Of the divergence from the reference, k3 of each token; 0: no reference (DeepSeek-R1: 0.001)."""
    reference_refresh: Count | None = 400
    """Steps after which the reference becomes the policy (DeepSeek-R1: 400); null: it stays where training began."""
    denominator: Literal["sequences", "tokens", "constant"] = "sequences"
    """Answers alike whatever their length (GRPO), tokens alike (DAPO), or by max_new_tokens (Dr. GRPO, 2503.20783)."""
    std_normalization: bool = True
    """Divide advantages by their group's deviation (DeepSeek-R1, equation 3); Dr. GRPO does not."""
    epochs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Optimizer steps on each batch of answers (DeepSeek-R1: 1)."""
    importance_cap: Annotated[float, Field(ge=1.0, le=1e6)] | None = None
    """Weighs tokens by how much likelier trainer than engine finds them, up to this; null: engine and trainer agree."""
    router_replay: bool = False
    """Train with the experts that the engine chose; the gate still learns (DeepSeek-V3.2, section 3.1)."""
    overlong_mask: bool = False
    """Leave answers that were cut off out of the loss (DAPO, section 3.4); otherwise they count like any other."""
    length_penalty: LengthPenalty | None = None
    """Takes reward from long answers; null: none."""
