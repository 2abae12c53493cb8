"""The same architecture at toy dims: kinds, switches and relations between sizes are kept, the sizes are not.

No size grows, and a spec that is valid stays so. Sizes that are easily confused (latents, heads, widths) differ.
"""

from __future__ import annotations

from typing import TypeVar

from dsc.spec.attention import Attention, GqaAttention, MlaAttention, WindowAttention
from dsc.spec.base import Section
from dsc.spec.checks import check
from dsc.spec.ffn import DenseFfn, Ffn, MoeFfn
from dsc.spec.model import LayerCycle, LayerGroup, ModelSpec
from dsc.spec.rl import ReinforcementLearning
from dsc.spec.rope import NoScaling, Rope
from dsc.spec.router import Router
from dsc.spec.tokens import Tokens

SUFFIX = "-shrunk"
LONGEST_NAME = 64

VOCAB_SIZE, HIDDEN_SIZE, SEQUENCE_LENGTH, POSITIONS = 256, 64, 64, 1024
ORIGINAL_POSITIONS = 256  # of the original context: enough for kept, divided and blended frequencies to differ
HEADS, QK_NOPE_DIM, QK_ROPE_DIM, V_DIM, HEAD_DIM = 4, 32, 16, 40, 32
Q_LORA_RANK, KV_LORA_RANK = 48, 24
DENSE_SIZE, EXPERT_SIZE = 96, 56
EXPERTS, GROUPS, EXPERTS_PER_GROUP, OPEN_GROUPS, CHOSEN_EXPERTS, SHARED_EXPERTS = 8, 4, 4, 2, 3, 2
LAYER_GROUPS, REPEATS, MTP_DEPTH = 3, 2, 2
GROUP_SIZE, NEW_TOKENS = 4, 16

WINDOW = 12  # far less than a sequence

S = TypeVar("S", bound=Section)
G = TypeVar("G", GqaAttention, WindowAttention)


def shrunk(spec: ModelSpec) -> ModelSpec:
    """Named after the spec, with -shrunk appended; without its cluster."""
    hidden_size = min(spec.hidden_size, HIDDEN_SIZE)
    length = min(spec.workload.sequence_length, SEQUENCE_LENGTH)
    attention, positions = _attentions(spec, length)
    small = _changed(
        spec,
        name=_name(spec.name),
        vocab_size=min(spec.vocab_size, VOCAB_SIZE),
        tokens=_tokens(spec.tokens, min(spec.vocab_size, VOCAB_SIZE)),
        hidden_size=hidden_size,
        max_position_embeddings=positions,
        attention=attention,
        ffn=_ffn(spec.ffn),
        layers=_layers(spec.layers),
        workload=_changed(spec.workload, sequence_length=length),
        cluster=None,
        logit_multiplier=_logit_multiplier(spec, hidden_size),
    )
    if spec.mtp is not None:
        small = _changed(small, mtp=_changed(spec.mtp, depth=min(spec.mtp.depth, MTP_DEPTH)))
    if spec.rl is not None:
        small = _changed(small, rl=_rl(spec.rl))
    assert not check(small), check(small)
    return small


def _name(name: str) -> str:
    """Appended once only, and no longer than a name may be."""
    return name.removesuffix(SUFFIX)[: LONGEST_NAME - len(SUFFIX)].rstrip("._-") + SUFFIX


def _tokens(tokens: Tokens, vocab_size: int) -> Tokens:
    """What a larger vocabulary has at its end moves into the smaller one."""
    ids = {
        name: None if token is None else token % vocab_size
        for name, token in (("bos", tokens.bos), ("pad", tokens.pad))
    }
    eos = None if tokens.eos is None else [token % vocab_size for token in tokens.eos]
    return _changed(tokens, **ids, eos=eos)


def _logit_multiplier(spec: ModelSpec, hidden_size: int) -> float:
    """MiniCPM's is a whole number / hidden_size, all that its config.json can say: it stays such a ratio, not 1."""
    base = round(spec.logit_multiplier * spec.hidden_size)
    small = max(1, round(spec.logit_multiplier * hidden_size))
    whole = base / spec.hidden_size == spec.logit_multiplier
    return small / hidden_size if whole and small != hidden_size else spec.logit_multiplier


def _attentions(spec: ModelSpec, length: int) -> tuple[Attention | dict[str, Attention], int]:
    """One or several, as they were; and max_position_embeddings, because rope scaling relates it to them."""
    small = {name: _attention(section, spec, length) for name, section in spec.attentions.items()}
    positions = max(positions for _, positions in small.values())
    named = {name: section for name, (section, _) in small.items()}
    return named if isinstance(spec.attention, dict) else named[spec.attention.kind], positions


def _attention(attention: Attention, spec: ModelSpec, length: int) -> tuple[Attention, int]:
    rope, positions = _rope(attention.rope, spec.max_position_embeddings, length)
    if isinstance(attention, MlaAttention):
        return _changed(_mla(attention), rope=rope), positions
    if isinstance(attention, WindowAttention):
        return _changed(_grouped(attention), rope=rope, window=min(attention.window, WINDOW)), positions
    return _changed(_grouped(attention), rope=rope), positions


def _mla(attention: MlaAttention) -> MlaAttention:
    """v_head_dim stays equal to qk_nope_head_dim or to the whole key's width, or wider or narrower than the key."""
    nope, rope_dim = min(attention.qk_nope_head_dim, QK_NOPE_DIM), min(attention.qk_rope_head_dim, QK_ROPE_DIM)
    key_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    if attention.v_head_dim >= key_dim:
        v_head_dim = nope + rope_dim + min(attention.v_head_dim - key_dim, V_DIM)
    elif attention.v_head_dim == attention.qk_nope_head_dim:
        v_head_dim = nope
    else:
        v_head_dim = min(attention.v_head_dim, V_DIM, nope + rope_dim - 1)
    small = _changed(
        attention,
        num_attention_heads=min(attention.num_attention_heads, HEADS),
        kv_lora_rank=min(attention.kv_lora_rank, KV_LORA_RANK),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope_dim,
        v_head_dim=v_head_dim,
    )
    if attention.q_lora_rank is None:
        return small
    return _changed(small, q_lora_rank=min(attention.q_lora_rank, Q_LORA_RANK))


def _grouped(attention: G) -> G:
    """Multi-head stays multi-head, multi-query multi-query; between them, two heads share each key-value head."""
    heads, kv_heads = min(attention.num_attention_heads, HEADS), attention.num_key_value_heads
    if kv_heads == attention.num_attention_heads:
        kv_heads = heads
    elif kv_heads > 1:
        kv_heads = HEADS // 2
    return _changed(
        attention,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=min(attention.head_dim, HEAD_DIM),
    )


def _rope(rope: Rope, positions: int, length: int) -> tuple[Rope, int]:
    """Rope scaling keeps its factor and the ratio of its two context lengths."""
    scaling = rope.scaling
    if isinstance(scaling, NoScaling):
        return rope, max(min(positions, POSITIONS), length)
    before = scaling.original_max_position_embeddings
    small = min(before, ORIGINAL_POSITIONS)
    changed = _changed(scaling, original_max_position_embeddings=small)
    return _changed(rope, scaling=changed), max(positions * small // before, length)


def _ffn(ffn: Ffn) -> Ffn:
    small = {
        name: _moe(section) if isinstance(section, MoeFfn) else _dense(section) for name, section in ffn.named().items()
    }
    return _changed(ffn, **small)


def _dense(dense: DenseFfn) -> DenseFfn:
    return _changed(dense, intermediate_size=min(dense.intermediate_size, DENSE_SIZE))


def _moe(moe: MoeFfn) -> MoeFfn:
    router = _router(moe.router)
    if router.n_group > 1:
        per_group = min(moe.n_routed_experts // moe.router.n_group, EXPERTS_PER_GROUP)
    else:
        per_group = min(moe.n_routed_experts, EXPERTS)
    return _changed(
        moe,
        n_routed_experts=router.n_group * per_group,
        num_experts_per_tok=min(moe.num_experts_per_tok, CHOSEN_EXPERTS, router.topk_group * per_group),
        moe_intermediate_size=min(moe.moe_intermediate_size, EXPERT_SIZE),
        n_shared_experts=min(moe.n_shared_experts, SHARED_EXPERTS),
        router=router,
    )


def _router(router: Router) -> Router:
    """Group-limited routing stays group-limited."""
    n_group = min(router.n_group, GROUPS)
    limited = router.topk_group < router.n_group
    return _changed(router, n_group=n_group, topk_group=min(router.topk_group, OPEN_GROUPS) if limited else n_group)


def _rl(rl: ReinforcementLearning) -> ReinforcementLearning:
    new_tokens, penalty = min(rl.max_new_tokens, NEW_TOKENS), rl.length_penalty
    if penalty is not None:
        penalty = _changed(penalty, buffer=min(penalty.buffer, new_tokens))
    size = min(rl.group_size, GROUP_SIZE)
    return _changed(rl, group_size=size, max_new_tokens=new_tokens, length_penalty=penalty)


def _layers(layers: list[LayerGroup | LayerCycle]) -> list[LayerGroup | LayerCycle]:
    """The first groups, and for each attention and feed-forward not among them the first group that has it."""
    kept = layers[:LAYER_GROUPS]
    for group in layers[LAYER_GROUPS:]:
        if not _names(group) <= {name for earlier in kept for name in _names(earlier)}:
            kept = [*kept, group]
    return [_changed(group, repeat=min(group.repeat, REPEATS)) for group in kept]


def _names(group: LayerGroup | LayerCycle) -> set[tuple[str, str | None]]:
    return {named for kind in group.kinds for named in (("attention", kind.attention), ("ffn", kind.ffn))}


def _changed(section: S, **values: object) -> S:
    """With new values; keys that were left out and still have their default stay out."""
    new = {name: value for name, value in values.items() if value != getattr(section, name)}
    return section.model_copy(update=new)
