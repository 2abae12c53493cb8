"""The formulas of the papers, once more and as plainly as they stand there: loops, explicit masks, complex numbers.

Everything is computed in the type of the weights given, which tests choose to be float64. Weights come by the names of
a checkpoint, so nothing here knows how an emitted module is built.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsc.spec.attention import GqaAttention, MlaAttention, WindowAttention
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import Layer, ModelSpec
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling
from dsc.spec.router import Router

Weights = Mapping[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm, arXiv 1910.07467, equation 4."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float | None) -> Tensor:
    """SwiGLU, arXiv 2002.05202, equation 6; with a limit, gate and up are cut off there (DeepSeek-V4)."""
    g, u = x @ gate.T, x @ up.T
    if limit is not None:
        g = torch.where(g > limit, torch.full_like(g, limit), g)
        u = torch.where(u.abs() > limit, limit * u.detach().sign(), u)
    return (g / (1 + torch.exp(-g)) * u) @ down.T


def mscale(factor: float, scale: float) -> float:
    """yarn_get_mscale of DeepSeek-V2's modeling_deepseek.py; without the rounding to float32 that torch would add."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def frequencies(rope: Rope, dim: int) -> list[float]:
    """Radians per position of each pair.

    YaRN as in precompute_freqs_cis of DeepSeek-V3's inference/model.py, Llama 3.1 as in apply_scaling of Meta's
    llama3 repository (reference_impl/model.py).
    """
    plain = [1.0 / rope.theta ** (2 * i / dim) for i in range(dim // 2)]
    match rope.scaling:
        case YarnScaling() as yarn:
            return [yarn_frequency(freq, i, rope.theta, dim, yarn) for i, freq in enumerate(plain)]
        case Llama3Scaling() as llama3:
            return [llama3_frequency(freq, llama3) for freq in plain]
    return plain


def yarn_frequency(freq: float, pair: int, theta: float, dim: int, yarn: YarnScaling) -> float:
    def correction_dim(rotations: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(correction_dim(yarn.beta_fast)), 0)
    high: float = min(math.ceil(correction_dim(yarn.beta_slow)), dim - 1)
    if low == high:
        high += 0.001
    ramp = min(max((pair - low) / (high - low), 0.0), 1.0)
    smooth = 1 - ramp
    return freq / yarn.factor * (1 - smooth) + freq * smooth


def llama3_frequency(freq: float, llama3: Llama3Scaling) -> float:
    wavelength, original = 2 * math.pi / freq, llama3.original_max_position_embeddings
    if wavelength < original / llama3.high_freq_factor:
        return freq
    if wavelength > original / llama3.low_freq_factor:
        return freq / llama3.factor
    band = llama3.high_freq_factor - llama3.low_freq_factor
    smooth = (original / wavelength - llama3.low_freq_factor) / band
    return (1 - smooth) * freq / llama3.factor + smooth * freq


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Each pair of x [S, heads, R] as a complex number times e^(i angle) (apply_rotary_emb of DeepSeek-V3), times
    YaRN's m(mscale) / m(mscale_all_dim). The half layout pairs component i with i + R / 2 (rotate_half of
    transformers)."""
    length, _, dim = x.shape
    positions = torch.arange(length, dtype=torch.float64)
    angles = torch.outer(positions, torch.tensor(frequencies(rope, dim), dtype=torch.float64))
    amplitude = 1.0
    if isinstance(rope.scaling, YarnScaling):
        yarn = rope.scaling
        amplitude = mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    turns = torch.polar(torch.full_like(angles, amplitude), angles)[:, None]
    if rope.layout == "interleaved":
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)
    turned = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * turns
    return torch.cat((turned.real, turned.imag), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> Tensor:
    """softmax(q k^T scale) v with an explicit causal mask, head by head: [S, H, .], [S, G, .] twice -> [S, H, .].

    With a window, token i sees tokens i - window + 1 to i.
    """
    length, heads, _ = q.shape
    sees = [[j <= i and (window is None or i - j < window) for j in range(length)] for i in range(length)]
    hidden = ~torch.tensor(sees)
    outputs = []
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        scores = (q[:, head] @ k[:, shared].T * scale).masked_fill(hidden, -math.inf)
        outputs.append(torch.softmax(scores, -1) @ v[:, shared])
    return torch.stack(outputs, 1)


def latent_attention(x: Tensor, weights: Weights, spec: MlaAttention) -> Tensor:
    """Latent attention, DeepSeek-V2 (arXiv 2405.04434), equations 37 to 47; the softmax scale of section 3.1.4."""
    length, heads = x.shape[0], spec.num_attention_heads
    if spec.q_lora_rank is None:
        q = x @ weights["q_proj.weight"].T
    else:
        latent = rms_norm(x @ weights["q_a_proj.weight"].T, weights["q_a_layernorm.weight"], spec.latent_norm_eps)
        q = latent @ weights["q_b_proj.weight"].T
    q = q.view(length, heads, -1)
    q = torch.cat((q[..., : spec.qk_nope_head_dim], rotate(q[..., spec.qk_nope_head_dim :], spec.rope)), -1)

    both = x @ weights["kv_a_proj_with_mqa.weight"].T
    shared_key = rotate(both[:, None, spec.kv_lora_rank :], spec.rope)
    latent = rms_norm(both[:, : spec.kv_lora_rank], weights["kv_a_layernorm.weight"], spec.latent_norm_eps)
    kv = (latent @ weights["kv_b_proj.weight"].T).view(length, heads, -1)
    keys, values = kv[..., : spec.qk_nope_head_dim], kv[..., spec.qk_nope_head_dim :]
    k = torch.cat((keys, shared_key.repeat(1, heads, 1)), -1)

    scale = (spec.qk_nope_head_dim + spec.qk_rope_head_dim) ** -0.5
    if isinstance(spec.rope.scaling, YarnScaling):
        scale *= mscale(spec.rope.scaling.factor, spec.rope.scaling.mscale_all_dim) ** 2
    return attend(q, k, values, scale).flatten(1) @ weights["o_proj.weight"].T


def grouped_attention(x: Tensor, weights: Weights, spec: GqaAttention | WindowAttention) -> Tensor:
    """Grouped-query attention, arXiv 2305.13245, with Qwen3's norms on the heads of q and k before rotation."""
    q, k, v = (x @ weights[f"{name}_proj.weight"].T + weights.get(f"{name}_proj.bias", 0) for name in "qkv")
    q, k, v = (projected.view(len(x), -1, spec.head_dim) for projected in (q, k, v))
    if spec.qk_norm is not None:
        q = rms_norm(q, weights["q_norm.weight"], spec.qk_norm.eps)
        k = rms_norm(k, weights["k_norm.weight"], spec.qk_norm.eps)
    window = spec.window if isinstance(spec, WindowAttention) else None
    out = attend(rotate(q, spec.rope), rotate(k, spec.rope), v, spec.head_dim**-0.5, window)
    return out.flatten(1) @ weights["o_proj.weight"].T


@dataclass(frozen=True)
class Choice:
    """What a router decided for one token."""

    experts: list[int]
    weights: list[Tensor]


def scores_of(x: Tensor, weight: Tensor, router: Router) -> Tensor:
    """s = sigmoid(u e) (DeepSeek-V3, arXiv 2412.19437, equation 15) or softmax(u e) (DeepSeek-V2, equation 22)."""
    products = x @ weight.T
    return torch.softmax(products, -1) if router.score == "softmax" else 1 / (1 + torch.exp(-products))


def choose(scores: Tensor, bias: Tensor | None, moe: MoeFfn) -> Choice:
    """One token's experts out of its scores [E].

    Bias in the choice only: DeepSeek-V3, equation 16. Groups: V3, section 2.1.2 (sum of the best scores of each), V2,
    section 2.2.2 (the best). Weights: V3, equations 12 and 13; the 1e-20 is in gate code of both transformers and
    DeepSeek's release for Hugging Face. Of equals the lower number wins.
    """
    router, experts = moe.router, range(moe.n_routed_experts)
    wanted = [scores[e].item() + (bias[e].item() if bias is not None else 0.0) for e in experts]
    size = moe.n_routed_experts // router.n_group
    group_scores = []
    for group in range(router.n_group):
        best = sorted(wanted[group * size : (group + 1) * size], reverse=True)
        group_scores.append(best[0] + best[1] if router.group_score == "top2_sum" else best[0])
    groups = sorted(range(router.n_group), key=lambda g: (-group_scores[g], g))[: router.topk_group]
    open_experts = [e for e in experts if e // size in groups]
    chosen = sorted(open_experts, key=lambda e: (-wanted[e], e))[: moe.num_experts_per_tok]
    weights = [scores[e] for e in chosen]
    if router.norm_topk_prob:
        total = sum(weights) + (1e-20 if router.score == "sigmoid" else 0.0)
        weights = [weight / total for weight in weights]
    return Choice(chosen, [weight * router.routed_scaling_factor for weight in weights])


def expert_weights(weights: Weights, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up and down of one expert, whichever names the family gives them."""
    names = ("w1", "w3", "w2") if f"experts.{expert}.w1.weight" in weights else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (weights[f"experts.{expert}.{name}.weight"] for name in names)
    return gate, up, down


@dataclass
class Routed:
    """What a mixture of experts leaves for training: scores [S, E] and the chosen experts of each token."""

    moe: MoeFfn
    scores: Tensor
    chosen: list[list[int]]


def mixture_of_experts(x: Tensor, weights: Weights, moe: MoeFfn, limit: float | None) -> tuple[Tensor, Routed]:
    """h = sum of g_e FFN_e(u) + shared FFN(u), token by token (DeepSeekMoE, arXiv 2401.06066, equation 9)."""
    scores = scores_of(x, weights["gate.weight"], moe.router)
    bias = weights.get("gate.e_score_correction_bias")
    rows, chosen = [], []
    for token, row in zip(x, scores, strict=True):
        choice = choose(row, bias, moe)
        out = torch.zeros_like(token)
        for expert, weight in zip(choice.experts, choice.weights, strict=True):
            out = out + weight * swiglu(token, *expert_weights(weights, expert), limit)
        if moe.n_shared_experts:
            shared = (weights[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down"))
            out = out + swiglu(token, *shared, limit)
        rows.append(out)
        chosen.append(choice.experts)
    return torch.stack(rows), Routed(moe, scores, chosen)


def below(weights: Weights, *prefixes: str) -> dict[str, Tensor]:
    """The weights under one of some prefixes, without it."""
    return {n.removeprefix(p): t for n, t in weights.items() for p in prefixes if n.startswith(p)}


def layer(x: Tensor, weights: Weights, spec: ModelSpec, kind: Layer) -> tuple[Tensor, Routed | None]:
    """x + attention(norm(x)), then x + ffn(norm(x)), each residual with its multiplier (MiniCPM, arXiv 2404.06395)."""
    multiplier, attention, ffn = spec.residual.multiplier, spec.attentions[kind.attention], spec.ffns[kind.ffn]
    h = rms_norm(x, weights["input_layernorm.weight"], spec.norm.eps)
    inner = below(weights, "self_attn.")
    if isinstance(attention, MlaAttention):
        h = latent_attention(h, inner, attention)
    else:
        h = grouped_attention(h, inner, attention)
    x = x + multiplier * h
    h = rms_norm(x, weights["post_attention_layernorm.weight"], spec.norm.eps)
    mlp, routed = below(weights, "mlp.", "block_sparse_moe."), None
    if isinstance(ffn, MoeFfn):
        h, routed = mixture_of_experts(h, mlp, ffn, spec.ffn.swiglu_limit)
    else:
        h = swiglu(h, *(mlp[f"{name}_proj.weight"] for name in ("gate", "up", "down")), spec.ffn.swiglu_limit)
    return x + multiplier * h, routed


@dataclass
class Run:
    """One sequence through the main model: the state before the final norm, logits, and each router's decisions."""

    state: Tensor
    logits: Tensor
    routed: list[Routed]


def run(tokens: Tensor, weights: Weights, spec: ModelSpec) -> Run:
    """The main model on one sequence [S]."""
    x = weights["model.embed_tokens.weight"][tokens] * spec.embedding_multiplier
    routed = []
    for index, kind in enumerate(spec.schedule):
        x, found = layer(x, below(weights, f"model.layers.{index}."), spec, kind)
        routed += [found] if found is not None else []
    return Run(x, head(rms_norm(x, weights["model.norm.weight"], spec.norm.eps), weights, spec), routed)


def head(hidden: Tensor, weights: Weights, spec: ModelSpec) -> Tensor:
    table = weights["model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"]
    return hidden * spec.logit_multiplier @ table.T


def logits(tokens: Tensor, weights: Weights, spec: ModelSpec) -> Tensor:
    """Of tokens [B, S], sequence by sequence."""
    return torch.stack([run(row, weights, spec).logits for row in tokens])


def token_losses(logits: Tensor, labels: Tensor, z_loss: float | None) -> list[Tensor]:
    """-log softmax of each label that is not -100, of one sequence; with the z-loss, log(Z)^2 times its weight too."""
    return [
        torch.logsumexp(row, 0) - row[label] + (z_loss or 0.0) * torch.logsumexp(row, 0) ** 2
        for row, label in zip(logits, labels.tolist(), strict=True)
        if label != -100
    ]


@dataclass
class Losses:
    main: Tensor
    mtp: Tensor
    balance: Tensor


def losses(tokens: Tensor, labels: Tensor, weights: Weights, spec: ModelSpec) -> Losses:
    """What training minimises: L_main + lambda / D * sum of L_MTP^k (DeepSeek-V3, equations 24 and 25) + L_Bal.

    Depth k predicts labels[i + k] at position i of the sequence, from tokens up to i + k.
    """
    depth = 0 if spec.mtp is None else spec.mtp.depth
    main: list[Tensor] = []
    ahead: list[list[Tensor]] = [[] for _ in range(depth)]
    balance = torch.zeros((), dtype=weights["model.norm.weight"].dtype)
    for row, targets in zip(tokens, labels, strict=True):
        result = run(row, weights, spec)
        main += token_losses(result.logits, targets, spec.z_loss)
        depths, routed = predict_ahead(row, result.state, weights, spec)
        for k, logits_ahead in enumerate(depths):
            ahead[k] += token_losses(logits_ahead, targets[k + 1 :], spec.z_loss)
        for one in [*result.routed, *routed]:
            balance = balance + balance_loss(one, one.moe) / len(tokens)
    mtp = torch.zeros_like(balance)
    for terms in ahead:
        assert spec.mtp is not None
        mtp = mtp + spec.mtp.loss_weight / depth * torch.stack(terms).mean()
    return Losses(torch.stack(main).mean(), mtp, balance)


def predict_ahead(
    tokens: Tensor, state: Tensor, weights: Weights, spec: ModelSpec
) -> tuple[list[Tensor], list[Routed]]:
    """The logits of each depth: h' = M [norm(h_i); norm(Emb(t_{i+k}))], a layer, the shared head (DeepSeek-V3,
    equations 21 to 23). In checkpoints M's first half belongs to the embedding (deepseek-ai/DeepSeek-V3,
    README_WEIGHTS.md and vLLM's deepseek_mtp.py), and each depth ends in a norm of its own, shared_head.norm.
    """
    if spec.mtp is None:
        return [], []
    depths, decisions = [], []
    hidden = rms_norm(state, weights["model.norm.weight"], spec.norm.eps)
    for k in range(1, spec.mtp.depth + 1):
        own = below(weights, f"model.layers.{spec.num_layers + k - 1}.")
        before = hidden if spec.mtp.hidden == "post_norm" else state
        h = rms_norm(before[:-1], own["hnorm.weight"], spec.norm.eps)
        e = rms_norm(weights["model.embed_tokens.weight"][tokens[k:]], own["enorm.weight"], spec.norm.eps)
        state, routed = layer(torch.cat((e, h), -1) @ own["eh_proj.weight"].T, own, spec, spec.schedule[-1])
        hidden = rms_norm(state, own["shared_head.norm.weight"], spec.norm.eps)
        depths.append(head(hidden, weights, spec))
        decisions += [routed] if routed is not None else []
    return depths, decisions


def balance_loss(routed: Routed, moe: MoeFfn) -> Tensor:
    """alpha * sum of f_e P_e over one sequence (DeepSeek-V3, equations 17 to 20): f_e counts the choices that were
    made, P_e averages the scores, which sigmoid needs to be normalised first and softmax already is."""
    alpha, length = moe.router.balance.sequence_aux_loss_alpha, len(routed.chosen)
    total = torch.zeros((), dtype=routed.scores.dtype)
    if alpha is None:
        return total
    shares = routed.scores
    if moe.router.score == "sigmoid":
        shares = shares / shares.sum(-1, keepdim=True)
    for expert in range(moe.n_routed_experts):
        chosen = sum(expert in experts for experts in routed.chosen)
        f = moe.n_routed_experts / (moe.num_experts_per_tok * length) * chosen
        total = total + f * shares[:, expert].mean()
    return alpha * total


def updated_bias(bias: Tensor, loads: list[int], rate: float) -> Tensor:
    """b_e + gamma where expert e is underloaded, b_e - gamma where it is overloaded (DeepSeek-V3, section 2.1.2)."""
    mean = sum(loads) / len(loads)
    moved = bias.clone()
    for expert, load in enumerate(loads):
        if load != mean:
            moved[expert] += rate if load < mean else -rate
    return moved


def dequantised(weight: Tensor, scale_inv: Tensor, block: tuple[int, int] = (128, 128)) -> Tensor:
    """W[i, j] = W_fp8[i, j] * scale_inv[i / 128, j / 128], each element apart (DeepSeek-V3's README_WEIGHTS.md)."""
    rows = [[scale_inv[i // block[0], j // block[1]] for j in range(weight.shape[1])] for i in range(weight.shape[0])]
    return weight.float() * torch.tensor(rows)
