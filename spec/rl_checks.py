"""Rules across the keys of rl and the model's, for spec/checks.py."""

from collections.abc import Iterator

from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec


def experts_to_replay(spec: ModelSpec) -> Iterator[Finding]:
    if spec.rl is None or not spec.rl.router_replay:
        return
    chosen = sorted({ffn.num_experts_per_tok for ffn in spec.ffns.values() if isinstance(ffn, MoeFfn)})
    if not chosen:
        message = "router_replay repeats the choice of experts, and no layer has any"
        yield Finding("DSC080", message, ("rl", "router_replay"), "remove it, or add experts to the model")
    elif len(chosen) > 1:
        message = (
            f"router_replay records equally many experts in every layer, and layers choose {chosen[0]} or {chosen[1]}"
        )
        yield Finding("DSC080", message, ("rl", "router_replay"), "remove it, or write one num_experts_per_tok")


def room_for_answers(spec: ModelSpec) -> Iterator[Finding]:
    if spec.rl is not None and spec.rl.max_new_tokens >= spec.max_position_embeddings:
        longest, answer = spec.max_position_embeddings, spec.rl.max_new_tokens
        message = f"answers of {answer} tokens leave no room for a question in max_position_embeddings, {longest}"
        yield Finding("DSC081", message, ("rl", "max_new_tokens"), f"write less than {longest}")


def penalty_within_answers(spec: ModelSpec) -> Iterator[Finding]:
    penalty = spec.rl.length_penalty if spec.rl is not None else None
    if spec.rl is not None and penalty is not None and penalty.buffer > spec.rl.max_new_tokens:
        message = f"the last {penalty.buffer} of {spec.rl.max_new_tokens} tokens are more than there are"
        help = f"write at most max_new_tokens, {spec.rl.max_new_tokens}"
        yield Finding("DSC082", message, ("rl", "length_penalty", "buffer"), help)


RL_RULES = (experts_to_replay, room_for_answers, penalty_within_answers)
