"""Log-probabilities of a chunk at a time: right over chunk bounds, and in the memory of one chunk's logits."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

VOCAB, TOKENS, HIDDEN = 129_280, 8 * 2_048, 64  # DeepSeek-V3's vocabulary


def test_chunks_change_nothing(learning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = learning()("train.head")
    hidden = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (3, 7)).masked_fill(torch.rand(3, 7) < 0.3, -100)
    expected = (hidden @ weight.T).log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = expected * (labels != -100)
    scale = torch.randn(3, 7, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    for chunk in (1, 4, 1000):
        monkeypatch.setattr(head, "CHUNK", chunk)
        found = head.log_probabilities(hidden, weight, labels)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        for one, other in zip(torch.autograd.grad((found * scale).sum(), (hidden, weight)), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_no_label_at_all(learning: Any) -> None:
    head = learning()("train.head")
    found = head.log_probabilities(torch.randn(2, 3, 4), torch.randn(9, 4), torch.full((2, 3), -100))
    assert not found.any() and found.shape == (2, 3)


def test_peak_memory_is_that_of_a_chunk(learning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside inputs and gradients, forward and backward together hold less than 1.2 times a chunk's logits."""
    head = learning()("train.head")
    chunk = 2**26 // VOCAB
    monkeypatch.setattr(head, "CHUNK", chunk)
    with FakeTensorMode():
        hidden = torch.empty(TOKENS, HIDDEN, requires_grad=True)
        weight = torch.empty(VOCAB, HIDDEN, requires_grad=True)
        labels = torch.empty(TOKENS, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(hidden, weight, labels)
        with tracker:
            head._LogProbabilities.apply(hidden, weight, labels).sum().backward()
    (peak,) = (snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())
    held = 2 * (hidden.nbytes + weight.nbytes) + labels.nbytes
    assert (peak - held) / (chunk * VOCAB * 4) < 1.2
