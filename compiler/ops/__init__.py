"""The op kinds. Importing this package registers all of them."""

from dsc.compiler.ops import (
    attention,
    cache,
    call,
    each_expert,
    elementwise,
    fused,
    init,
    loss,
    moe,
    norm,
    paged,
    prepared,
    projection,
    rope,
    router,
    shape,
)

__all__ = [
    "attention",
    "cache",
    "call",
    "each_expert",
    "elementwise",
    "fused",
    "init",
    "loss",
    "moe",
    "norm",
    "paged",
    "prepared",
    "projection",
    "rope",
    "router",
    "shape",
]
