"""Records what TRL computes for some answers: `python tests/rl/record_trl.py`, where trl 1.16 can be imported.

TRL brings more packages than these tests should need, so its figures stand in trl_1_16.json, in float64. The loss is
GRPOTrainer._compute_loss itself, on a trainer that has its options and nothing else; advantages are the lines of
GRPOTrainer._generate_and_score_completions that compute them.
"""

import inspect
import json
import math
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LENGTHS, GROUP, LONGEST = (5, 3, 7, 1, 7, 2, 4, 6), 4, 8
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our options, TRL's
    "grpo": ({"denominator": "sequences", "kl": 0.04}, {"loss_type": "grpo", "beta": 0.04}),
    "dapo": ({"denominator": "tokens", "kl": 0.04}, {"loss_type": "dapo", "beta": 0.04}),
    "dapo, no reference": ({"denominator": "tokens", "kl": 0.0}, {"loss_type": "dapo"}),
    "dr_grpo": (
        {"denominator": "constant", "std_normalization": False, "kl": 0.0},
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "gspo": (
        {"denominator": "sequences", "ratio": "sequence", "kl": 0.04},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04},
    ),
    "importance sampling": (
        {"denominator": "tokens", "importance_cap": 1.1, "kl": 0.04},
        {"loss_type": "dapo", "use_vllm": True, "cap": 1.1, "beta": 0.04},
    ),
}
OFF: dict[str, Any] = {
    "beta": 0.0,
    "importance_sampling_level": "token",
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "aux_loss_enabled": False,
    "_entropy_bonus_enabled": False,
    "off_policy_mask_threshold": None,
    "top_entropy_quantile": 1.0,
}


def given() -> dict[str, Tensor]:
    """Log-probabilities under four policies [B, T], rewards of two groups, and which tokens there are."""
    torch.manual_seed(0)
    shape, wide = (len(LENGTHS), max(LENGTHS)), torch.float64
    old = torch.randn(shape, dtype=wide) * 0.3 - 2
    drawn = {name: old + torch.randn(shape, dtype=wide) * 0.2 for name in ("logp", "sampled", "reference")}
    mask = torch.tensor([[float(t < length) for t in range(shape[1])] for length in LENGTHS], dtype=wide)
    return {"old": old, **drawn, "mask": mask, "rewards": torch.rand(2, GROUP, dtype=wide)}


def trainer(options: dict[str, Any]) -> Any:
    """What _compute_loss reads of a trainer."""
    alone = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    return SimpleNamespace(
        **{**OFF, **options},
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        accelerator=alone,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )


def advantages(source: type, options: dict[str, Any], rewards: Tensor) -> Tensor:
    """By the lines of TRL's method, from the mean of a group to the division by its deviation."""
    lines = inspect.getsource(source._generate_and_score_completions).splitlines()
    first = next(i for i, line in enumerate(lines) if "mean_grouped_rewards = " in line)
    last = next(i for i, line in enumerate(lines) if "is_std_zero = " in line)
    scope = {**vars(inspect.getmodule(source)), "self": trainer(options)}
    scope |= {"rewards": rewards.flatten(), "num_generations": GROUP, "torch": torch}
    exec(textwrap.dedent("\n".join(lines[first:last])), scope)
    found: Tensor = scope["advantages"]
    return found


def recorded(source: type, options: dict[str, Any], known: dict[str, Tensor]) -> dict[str, Any]:
    logp = known["logp"].clone().requires_grad_()
    mask, above = known["mask"], advantages(source, options, known["rewards"])
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": above,
        "old_per_token_logps": known["old"],
        "ref_per_token_logps": known["reference"],
        "num_items_in_batch": mask.sum(),
        "importance_sampling_ratio": (known["old"] - known["sampled"]).exp().clamp(max=options.get("cap", math.inf)),
    }
    stand_in = trainer(options)
    stand_in._get_per_token_logps_and_entropies = lambda *args, **more: (logp, torch.zeros_like(logp), None)
    loss = source._compute_loss(stand_in, None, inputs)
    (gradient,) = torch.autograd.grad(loss, logp)
    return {"advantages": above.tolist(), "loss": loss.item(), "gradient": gradient.tolist()}


def main() -> None:
    import trl
    from trl.trainer.grpo_trainer import GRPOTrainer

    torch.set_default_dtype(torch.float64)  # TRL divides two integers on the way to a deviation
    known = given()
    cases = {
        name: {
            "rl": {**CLIP, "group_size": GROUP, "max_new_tokens": LONGEST, **ours},
            **recorded(GRPOTrainer, theirs, known),
        }
        for name, (ours, theirs) in CASES.items()
    }
    record = {"trl": trl.__version__, "given": {name: value.tolist() for name, value in known.items()}, "cases": cases}
    Path(__file__).with_name("trl_1_16.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
