"""The sizes at which each kernel is measured, from the named dims of a package's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Dims = Mapping[str, int]
"""{"HIDDEN_SIZE": 7168, ...}."""
Sizes = Callable[[Dims], tuple[Any, ...]]
FEED_FORWARDS = ("INTERMEDIATE_SIZE", "SHARED_SIZE")
"""Dims that are the width of a feed-forward: dense, of the shared experts."""


def named(*names: str) -> Sizes:
    """The sizes of these dims, which every model with the kernel has."""
    return lambda dims: tuple(dims[name] for name in names)


def widths(*names: str) -> Sizes:
    """The different sizes of those of these dims that a model has."""
    return lambda dims: tuple(sorted({dims[name] for name in names if name in dims}))


def products(dims: Dims) -> tuple[tuple[int, int], ...]:
    """[N, K] of the linear layers of attention and feed-forwards."""
    d, heads = dims["HIDDEN_SIZE"], dims["NUM_HEADS"]
    inner = {dims[name] for name in FEED_FORWARDS if name in dims}
    feed_forward = {(width, d) for width in inner} | {(d, width) for width in inner}
    if "KV_LORA_RANK" not in dims:
        head, kv_heads = dims["HEAD_DIM"], dims["NUM_KV_HEADS"]
        return tuple(sorted(feed_forward | {(heads * head, d), (kv_heads * head, d), (d, heads * head)}))
    rank, nope, rope, v = (dims[n] for n in ("KV_LORA_RANK", "QK_NOPE_HEAD_DIM", "QK_ROPE_HEAD_DIM", "V_HEAD_DIM"))
    queries = {(heads * (nope + rope), dims.get("Q_LORA_RANK", d))}
    if "Q_LORA_RANK" in dims:
        queries.add((dims["Q_LORA_RANK"], d))
    latent = {(rank + rope, d), (heads * (nope + v), rank), (d, heads * v)}
    return tuple(sorted(feed_forward | queries | latent))


def quantized(dims: Dims) -> tuple[int, tuple[int, ...]]:
    """The width of the hidden state, and those of feed-forwards."""
    return dims["HIDDEN_SIZE"], widths(*FEED_FORWARDS, "EXPERT_SIZE")(dims)


def attentions(dims: Dims) -> tuple[str, ...]:
    """What stands before the dims of each attention of the model: nothing where it has one."""
    return tuple(name.removesuffix("NUM_HEADS") for name in dims if name.endswith("NUM_HEADS"))


def rotated(dims: Dims) -> tuple[tuple[int, int], ...]:
    """Heads, and the components of each that are rotated, of queries and of keys, for each attention of the model."""
    found: list[tuple[int, int]] = []
    for prefix in attentions(dims):
        if f"{prefix}QK_ROPE_HEAD_DIM" in dims:
            width, shared = dims[f"{prefix}QK_ROPE_HEAD_DIM"], 1
        else:
            width, shared = dims[f"{prefix}HEAD_DIM"], dims[f"{prefix}NUM_KV_HEADS"]
        found += [(dims[f"{prefix}NUM_HEADS"], width), (shared, width)]
    return tuple(dict.fromkeys(found))


def attended(dims: Dims) -> tuple[tuple[int, int, int, int | None], ...]:
    """Query heads, key heads, how wide they are, and the window where there is one, of each attention of the model."""
    names = ("NUM_HEADS", "NUM_KV_HEADS", "HEAD_DIM")
    found = [(*(dims[f"{prefix}{name}"] for name in names), dims.get(f"{prefix}WINDOW")) for prefix in attentions(dims)]
    return tuple(dict.fromkeys(found))


def cached(dims: Dims) -> tuple[int, int, int | None]:
    """The widths of a latent, of its rotary part, and of the latent of queries where there is one."""
    return dims["KV_LORA_RANK"], dims["QK_ROPE_HEAD_DIM"], dims.get("Q_LORA_RANK")


EXPERTS = named("NUM_EXPERTS", "TOP_K", "HIDDEN_SIZE", "EXPERT_SIZE")
HEADS = named("NUM_HEADS", "QK_NOPE_HEAD_DIM", "QK_ROPE_HEAD_DIM", "V_HEAD_DIM")
SIZES: Mapping[str, Sizes] = {
    "expert_dispatch": named("NUM_EXPERTS", "TOP_K", "HIDDEN_SIZE"),
    "fp8_gemm": products,
    "fp8_grouped_gemm": EXPERTS,
    "fp8_grouped_gemm_backward": EXPERTS,
    "fp8_quantize": quantized,
    "gqa_attention": attended,
    "gqa_attention_backward": attended,
    "gqa_decode": named("NUM_HEADS", "NUM_KV_HEADS", "HEAD_DIM"),
    "grouped_gemm": EXPERTS,
    "grouped_gemm_backward": EXPERTS,
    "latent_cache": cached,
    "linear_cross_entropy": named("VOCAB_SIZE", "HIDDEN_SIZE"),
    "mla_attention": HEADS,
    "mla_attention_backward": HEADS,
    "mla_decode": named("NUM_HEADS", "KV_LORA_RANK", "QK_ROPE_HEAD_DIM"),
    "rms_norm": lambda dims: (),
    "rope": rotated,
    "router": named("NUM_EXPERTS", "TOP_K"),
    "swiglu": widths(*FEED_FORWARDS),
    "swiglu_quantize": widths(*FEED_FORWARDS),
}
"""By kernel; handed to `cases` of compiler/bench/cases/<name>.py."""
