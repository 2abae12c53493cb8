"""The op kinds. Importing this package registers all of them."""

from dsc.compiler.ops import (
    attention,
    batch,
    cache,
    call,
    dispatch,
    elementwise,
    fused,
    init,
    loss,
    moe,
    norm,
    projection,
    rope,
    router,
    shape,
)

__all__ = [
    "attention",
    "batch",
    "cache",
    "call",
    "dispatch",
    "elementwise",
    "fused",
    "init",
    "loss",
    "moe",
    "norm",
    "projection",
    "rope",
    "router",
    "shape",
]
