"""What a package calls of DeepEP (its version 2), over torch.distributed: for ranks on CPUs, and strict.

Written from its documented interface. It refuses what the real one asserts: types, shapes, layout of memory, sizes.
What the real one leaves open is made hard: rows of an expert come in any order, and nothing is there before the event
was waited for. Bytes of rows that leave a rank are counted.

DEEP_EP_WIDE in the environment sends rows and weights in float64, for comparison with one process; else the types are
the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WIDE = "DEEP_EP_WIDE" in os.environ
ROWS, WEIGHTS = (torch.float64, torch.float64) if WIDE else (torch.bfloat16, torch.float32)
topk_idx_t = torch.int64
MOST_CHOICES, COMPONENTS = 32, 256
sent = {"rows": 0}
"""Bytes of rows that left this rank."""


class EventOverlap:
    def __init__(self, arrive: Callable[[], None] | None = None) -> None:
        self.event = arrive

    def current_stream_wait(self, release_handle: bool = False) -> None:
        assert self.event is not None, "nothing is on its way"
        self.event()


@dataclass
class EPHandle:
    buffer: ElasticBuffer
    do_expand: bool
    num_experts: int
    expert_alignment: int
    topk_idx: Tensor
    num_expanded_tokens: int
    psum_num_recv_tokens_per_expert: Tensor
    tokens: list[Tensor]
    """Of ours, those that go to each rank."""
    received: list[int]
    """Rows that come from each rank."""
    slots: Tensor
    """Of each row that came, for each choice, where it lies; -1 where that is another rank's."""


class ElasticBuffer:
    def __init__(
        self,
        group: dist.ProcessGroup,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
    ) -> None:
        assert num_bytes is None and not num_cpu_bytes and not use_fp8_dispatch, "no package asks for this"
        assert num_max_tokens_per_rank > 0 and 0 < num_topk <= MOST_CHOICES
        assert hidden > 0 and hidden % COMPONENTS == 0, hidden
        assert isinstance(group, dist.ProcessGroup) and group.size() > 1
        self.group, self.num_ranks, self.rank_idx = group, group.size(), group.rank()
        self.num_max_tokens_per_rank, self.hidden, self.num_topk = num_max_tokens_per_rank, hidden, num_topk
        self.random = torch.Generator().manual_seed(self.rank_idx)

    def dispatch(
        self,
        x: Tensor,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        cumulative_local_expert_recv_stats: Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: EPHandle | None = None,
        do_handle_copy: bool = True,
        do_cpu_sync: bool | None = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, EPHandle, EventOverlap]:
        assert do_expand, "packages have rows laid out expert by expert"
        assert num_experts is not None, "the number of multiprocessors follows from it"
        self._check_rows(x)
        if handle is None:
            assert topk_idx is not None
            handle = self._lay_out(x, topk_idx, num_experts, expert_alignment or 1)
        else:
            assert topk_idx is None and not do_cpu_sync
            assert handle.buffer is self and handle.do_expand == do_expand
            assert (num_experts, expert_alignment or handle.expert_alignment) == (
                handle.num_experts,
                handle.expert_alignment,
            )
            assert len(x) == len(handle.topk_idx)
        if topk_weights is not None:
            assert topk_weights.shape == handle.topk_idx.shape and topk_weights.is_contiguous()
            assert topk_weights.dtype == WEIGHTS, topk_weights.dtype
        sent["rows"] += x.element_size() * x.shape[1] * self._leaving(handle)
        came = self._there(x, handle)
        rows = self._laid_out(came.unsqueeze(1).expand(-1, handle.slots.shape[1], -1), handle)
        weights = None if topk_weights is None else self._laid_out(self._there(topk_weights, handle), handle)
        given = [rows, *([] if weights is None else [weights])]
        if not async_with_compute_stream:
            return rows, None, weights, handle, EventOverlap()
        late = [*given, *([handle.psum_num_recv_tokens_per_expert] if topk_idx is not None else [])]
        values = [one.clone() for one in late]
        for one in late:
            one.fill_(torch.nan if one.is_floating_point() else -1)

        def arrive() -> None:
            with torch.no_grad():
                for one, value in zip(late, values, strict=True):
                    one.copy_(value)

        return rows, None, weights, handle, EventOverlap(arrive)

    def combine(
        self,
        x: Tensor,
        handle: EPHandle,
        topk_weights: Tensor | None = None,
        bias: Tensor | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:
        assert handle.buffer is self and bias is None and not async_with_compute_stream
        self._check_rows(x)
        assert len(x) == handle.num_expanded_tokens
        sums = self._picked(x, handle).to(self._sums).sum(1).to(x.dtype)
        back = self._back(sums, handle)
        total = x.new_zeros(len(handle.topk_idx), x.shape[1], dtype=self._sums)
        for tokens, rows in zip(handle.tokens, back, strict=True):
            total.index_add_(0, tokens, rows.to(self._sums))
        sent["rows"] += x.element_size() * x.shape[1] * (len(handle.slots) - handle.received[self.rank_idx])
        if topk_weights is None:
            return total.to(x.dtype), None, EventOverlap()
        assert topk_weights.shape == x.shape[:1] and topk_weights.is_contiguous()
        assert topk_weights.dtype == WEIGHTS, topk_weights.dtype
        weights = topk_weights.new_zeros(handle.topk_idx.shape)
        for tokens, rows in zip(handle.tokens, self._back(self._picked(topk_weights, handle), handle), strict=True):
            weights.index_add_(0, tokens, rows)
        return total.to(x.dtype), weights, EventOverlap()

    @property
    def _sums(self) -> torch.dtype:
        return torch.float64 if WIDE else torch.float32

    def _check_rows(self, x: Tensor) -> None:
        assert x.dim() == 2 and x.is_contiguous() and x.shape[1] == self.hidden, x.shape
        assert x.dtype == ROWS, x.dtype

    def _lay_out(self, x: Tensor, topk_idx: Tensor, num_experts: int, alignment: int) -> EPHandle:
        assert len(x) <= self.num_max_tokens_per_rank, f"{len(x)} tokens of {self.num_max_tokens_per_rank}"
        assert topk_idx.dtype == topk_idx_t and topk_idx.is_contiguous()
        assert topk_idx.shape == (len(x), self.num_topk), topk_idx.shape
        assert num_experts % self.num_ranks == 0 and alignment == 1
        ordered = topk_idx.sort(1).values
        assert bool((ordered[:, 1:] != ordered[:, :-1]).all()), "an expert is chosen twice"
        own = num_experts // self.num_ranks
        tokens = [(topk_idx // own == rank).any(1).nonzero().flatten() for rank in range(self.num_ranks)]
        counts = torch.tensor([len(one) for one in tokens])
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=self.group)
        psum = torch.zeros(own, dtype=torch.int32)
        empty = torch.empty(0, dtype=torch.int64)
        handle = EPHandle(
            self, True, num_experts, alignment, topk_idx.clone(), 0, psum, tokens, received.tolist(), empty
        )
        expert = self._there(topk_idx, handle) - self.rank_idx * own
        ours = (expert >= 0) & (expert < own)
        row, choice = ours.nonzero(as_tuple=True)
        shuffled = torch.randperm(len(row), generator=self.random)
        order = shuffled[expert[row, choice][shuffled].argsort(stable=True)]
        handle.slots = torch.full_like(expert, -1)
        handle.slots[row[order], choice[order]] = torch.arange(len(order))
        handle.num_expanded_tokens = len(order)
        psum.copy_(expert[ours].bincount(minlength=own).cumsum(0))
        return handle

    def _leaving(self, handle: EPHandle) -> int:
        return sum(len(one) for rank, one in enumerate(handle.tokens) if rank != self.rank_idx)

    def _there(self, x: Tensor, handle: EPHandle) -> Tensor:
        """What comes of all ranks' tokens, rank by rank."""
        return self._exchange(x[torch.cat(handle.tokens)], [len(one) for one in handle.tokens], handle.received)

    def _back(self, x: Tensor, handle: EPHandle) -> tuple[Tensor, ...]:
        to = [len(one) for one in handle.tokens]
        return self._exchange(x, handle.received, to).split(to)

    def _exchange(self, x: Tensor, to: list[int], of: list[int]) -> Tensor:
        bytes_ = x.contiguous().view(len(x), prod(x.shape[1:])).view(torch.uint8)
        found = bytes_.new_empty(sum(of), bytes_.shape[1])
        dist.all_to_all_single(found, bytes_, of, to, group=self.group)
        return found.view(x.dtype).view(sum(of), *x.shape[1:])

    def _laid_out(self, choices: Tensor, handle: EPHandle) -> Tensor:
        """Of rows that came, for each choice, what lies at each slot."""
        laid = choices.new_empty(handle.num_expanded_tokens, *choices.shape[2:])
        ours = handle.slots >= 0
        laid[handle.slots[ours]] = choices[ours]
        return laid

    def _picked(self, x: Tensor, handle: EPHandle) -> Tensor:
        """The other way round, zero where a choice is another rank's."""
        ours = handle.slots >= 0
        picked = x.new_zeros(*handle.slots.shape, *x.shape[1:])
        picked[ours] = x[handle.slots[ours]]
        return picked
