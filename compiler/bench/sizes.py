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
    """[N, K] of the linear layers of attentions and feed-forwards."""
    d = dims["HIDDEN_SIZE"]
    found: set[tuple[int, int]] = set()
    for width in (dims[name] for name in FEED_FORWARDS if name in dims):
        found |= {(width, d), (d, width)}
    for prefix in attentions(dims):
        own = {name.removeprefix(prefix): size for name, size in dims.items() if name.startswith(prefix)}
        found |= _latent(own, d) if "KV_LORA_RANK" in own else _grouped(own, d)
    return tuple(sorted(found))


def _grouped(own: Dims, d: int) -> set[tuple[int, int]]:
    """Of an attention, its dims without its prefix."""
    heads, kv_heads, head = own["NUM_HEADS"], own["NUM_KV_HEADS"], own["HEAD_DIM"]
    return {(heads * head, d), (kv_heads * head, d), (d, heads * head)}


def _latent(own: Dims, d: int) -> set[tuple[int, int]]:
    heads = own["NUM_HEADS"]
    rank, nope, rope, v = (own[n] for n in ("KV_LORA_RANK", "QK_NOPE_HEAD_DIM", "QK_ROPE_HEAD_DIM", "V_HEAD_DIM"))
    queries = {(heads * (nope + rope), own.get("Q_LORA_RANK", d))}
    if "Q_LORA_RANK" in own:
        queries.add((own["Q_LORA_RANK"], d))
    return {(rank + rope, d), (heads * (nope + v), rank), (d, heads * v)} | queries


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
    found: list[tuple[int, int, int, int | None]] = []
    for prefix in attentions(dims):
        heads, kv_heads, width = (dims[f"{prefix}{name}"] for name in ("NUM_HEADS", "NUM_KV_HEADS", "HEAD_DIM"))
        found.append((heads, kv_heads, width, dims.get(f"{prefix}WINDOW")))
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
