"""An emitted package's forward over pages, driven by hand: the logits after each chunk of some sequences."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Importer = Callable[[str], ModuleType]


def chunk_logits(package: Importer, model: Any, tokens: Tensor, chunks: list[int], packed: bool = False) -> Tensor:
    """Of the last token of every chunk: tokens [B, S] -> [B, chunks, W]. Each row has pages of its own.

    `packed`: by weights in oneDNN's layout.
    """
    engine = package("infer.engine").Engine(model, cache_bytes=1 << 22)
    if packed:
        engine.layout._change(False)
    part, pack = package("infer.batch").Part, package("infer.batch").pack
    engine.pool.take(1)  # so that no row begins at the first page
    pages = [engine.pool.take(-(-tokens.shape[1] // package("infer.cache").PAGE_SIZE)) for _ in tokens]
    engine._clear()
    module = engine.layout.module if hasattr(engine, "layout") else engine.module
    found, start = [], 0
    for size in chunks:
        parts = [
            part(held, 0, start, row[start : start + size]) for held, row in zip(pages, tokens.tolist(), strict=True)
        ]
        rows = torch.arange(1, len(tokens) + 1, device=engine.device) * size - 1
        new, batch = pack(parts, engine.device)
        with torch.inference_mode():
            caches = engine.caches[: len(model.layers)]
            logits = package("infer.decode").model_forward(module, new, rows, batch, caches)
        found.append(logits[0] if isinstance(logits, tuple) else logits)
        start += size
    return torch.stack(found, 1)
