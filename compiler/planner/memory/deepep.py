"""The buffer that DeepEP's kernels send rows through, as its ElasticBuffer sizes it (version 2.1).

One on each rank, for all layers: with room for all tokens of a micro-batch of every rank of the group.
"""

from __future__ import annotations

ALIGNED = 32
"""Bytes, of each part of a row."""
WHOLE = 2 * 2**20
"""Bytes that a buffer is a multiple of."""
CHANNELS = 1280
"""Rows more on the way between domains: 8 channels of each of 160 multiprocessors."""


def buffer_bytes(tokens: int, hidden: int, top_k: int, ranks: int, local: int) -> int:
    """For `tokens` a rank, of bfloat16, in a group of which `local` ranks are in each scale-up domain."""
    domains = ranks // local
    numbers = 4 * top_k * 2  # an expert and a weight for each choice; there also where the row comes from
    there, back = _row(hidden, numbers + 4 * (1 + top_k)), _row(hidden, numbers)
    if domains == 1:
        rows_there, rows_back = ranks * tokens, min(ranks, top_k) * tokens
    else:
        on_the_way = domains * (tokens + CHANNELS)
        rows_there = ranks * tokens + tokens + on_the_way
        rows_back = (min(local, top_k) * domains + min(domains, top_k)) * tokens + on_the_way
    return -(-max(there * rows_there, back * rows_back) // WHOLE) * WHOLE


def _row(hidden: int, numbers: int) -> int:
    return sum(-(-size // ALIGNED) * ALIGNED for size in (2 * hidden, numbers))
