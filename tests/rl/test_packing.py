"""Several answers in a row: each has the loss that it has alone, and nothing but answers is learned."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dsc.compiler.driver import build, emit
from dsc.compiler.graph.saved import saved_storages
from dsc.compiler.ops.call import function_name
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

Example = tuple[list[int], list[int]]
SIZES = [(3, 4), (7, 2), (1, 5), (2, 1), (12, 9), (5, 5), (1, 2), (90, 50)]  # of prompts and answers
WIDTH = 120  # longer than tiny-window's window; the last example is cut off there


def drawn() -> list[Example]:
    draw = random.Random(0)
    return [([draw.randrange(256) for _ in range(n)], [draw.randrange(256) for _ in range(m)]) for n, m in SIZES]


def weights_of_a_model(module: Any) -> Any:
    torch.manual_seed(1)
    model = module("model").Model().double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.08)
    return model


def places(rows: Any, examples: Sequence[Example]) -> list[tuple[int, int, int]]:
    """Row, begin and end of each example, found by its tokens."""
    found = []
    for prompt, answer in examples:
        text = torch.tensor([*prompt, *answer])[:WIDTH]
        text = text if len(prompt) + len(answer) > WIDTH else text[:-1]
        (place,) = (
            (row, begin, begin + len(text))
            for row, tokens in enumerate(rows.tokens)
            for begin in range(len(tokens) - len(text) + 1)
            if tokens[begin : begin + len(text)].equal(text)
        )
        found.append(place)
    return found


def alone(module: Any, model: Any, example: Example) -> tuple[Tensor, Tensor]:
    """The losses of an example by the step of pre-training, and its labels; written here once more."""
    prompt, answer = example
    text = torch.tensor([*prompt, *answer])[: WIDTH + 1]
    labels = text[1:].clone()
    labels[: len(prompt) - 1] = -100
    stages = module("train.stages")
    counts = stages.counts_of(labels.unsqueeze(0), 1).clamp(min=1).double()
    whole = stages.WholeModel(model, 0, len(model.layers))
    return whole(text[:-1].unsqueeze(0), labels.unsqueeze(0), counts), labels


@pytest.mark.parametrize("name", ["tiny-r1", "tiny-window", "minicpm3-4b"])
def test_each_has_the_loss_that_it_has_alone(learning: Any, name: str) -> None:
    """With multi-token prediction and experts; in a window shorter than a row; with a tied head."""
    module = learning(name)
    model, examples = weights_of_a_model(module), drawn()
    rows = module("train.packing").pack(examples, WIDTH)
    assert len(rows) < len(examples)
    losses_of = module("train.packed").model_losses
    names = module("train.stages").LOSSES
    kept = [index for index, loss in enumerate(names) if loss in ("main", "mtp")]
    for example, (row, begin, end) in zip(examples, places(rows, examples), strict=True):
        expected, own = alone(module, model, example)
        assert rows.labels[row, begin:end].equal(own)
        labels = torch.full_like(rows.labels, -100)
        labels[row, begin:end] = own
        counts = module("train.stages").counts_of(own.unsqueeze(0), 1).clamp(min=1).double()
        found = losses_of(model, rows.tokens, labels, counts, rows.documents)
        torch.testing.assert_close(found[kept], expected[kept], rtol=1e-11, atol=1e-12)
        if begin:
            merged = losses_of(model, rows.tokens, labels, counts, torch.zeros_like(rows.documents))
            assert (merged - found)[kept].abs().max() > 1e-6  # where boundaries are ignored


@pytest.mark.parametrize("name", ["tiny-r1", "tiny-window"])
def test_gradients_are_the_sum_of_those_of_each_alone(learning: Any, name: str) -> None:
    module = learning(name)
    model, examples = weights_of_a_model(module), drawn()
    rows = module("train.packing").pack(examples, WIDTH)
    stages = module("train.stages")
    counts = stages.counts_of(rows.labels, 1).clamp(min=1).double()
    kept = [index for index, loss in enumerate(stages.LOSSES) if loss in ("main", "mtp")]
    module("train.packed").model_losses(model, rows.tokens, rows.labels, counts, rows.documents)[kept].sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    for example in examples:
        losses, labels = alone(module, model, example)
        own = stages.counts_of(labels.unsqueeze(0), 1).clamp(min=1)
        share = torch.cat([losses.new_zeros(1), (own / counts)[0, :-1]])[: len(stages.LOSSES)]
        weighed = sum(losses[index] * share[place + 1] for place, index in enumerate(kept))
        assert isinstance(weighed, Tensor)
        weighed.backward()
    for weight_name, gradient in found.items():
        expected = model.get_parameter(weight_name).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=weight_name)


def test_only_answers_are_learned(learning: Any) -> None:
    """The gradient of the logits is zero at every position but those whose next token belongs to an answer."""
    module = learning()
    model, examples = weights_of_a_model(module), drawn()
    rows = module("train.packing").pack(examples, WIDTH)
    logits: list[Tensor] = []

    def kept(_: object, __: object, out: Tensor) -> None:
        out.retain_grad()
        logits.append(out)

    model.lm_head.register_forward_hook(kept)
    counts = module("train.stages").counts_of(rows.labels, 1).double()
    module("train.packed").model_losses(model, rows.tokens, rows.labels, counts, rows.documents)[0].backward()
    answers, ahead = (torch.zeros(rows.tokens.shape, dtype=torch.bool) for _ in range(2))
    for (prompt, answer), (row, begin, end) in zip(examples, places(rows, examples), strict=True):
        first = begin + len(prompt) - 1
        answers[row, first : min(first + len(answer), end)] = True
        ahead[row, max(begin, first - 1) : min(first + len(answer), end) - 1] = True
    main, mtp = (made.grad.abs().amax(-1) > 0 for made in logits if made.grad is not None)
    assert main.equal(answers)
    assert mtp.equal(ahead[:, :-1])


def test_rows_hold_every_example_once_and_no_more_than_fits(learning: Any) -> None:
    pack = learning()("train.packing").pack
    draw = random.Random(1)
    examples = [([1 + draw.randrange(255)] * draw.randint(1, 20), [7] * draw.randint(1, 20)) for _ in range(200)]
    rows = pack(examples, WIDTH)
    assert rows.tokens.shape[1] <= WIDTH
    positions = sum(len(prompt) + len(answer) - 1 for prompt, answer in examples)
    assert int((rows.documents >= 0).sum()) == positions
    assert int((rows.labels != -100).sum()) == sum(len(answer) for _, answer in examples)
    assert sum(int(row.max()) + 1 for row in rows.documents) == len(examples)
    assert len(rows) <= 1.25 * positions / WIDTH  # first fit, longest first, needs at most 11/9 of the fewest
    assert all(pack(examples, WIDTH).tokens.equal(rows.tokens) for _ in range(2))


def test_what_follows_too_soon_begins_a_row(learning: Any) -> None:
    """After one token of a prompt, multi-token prediction would read the answer off the document before."""
    rows = learning()("train.packing").pack([([1, 2, 3], [4] * n) for n in range(1, 9)] + [([9], [5, 6])] * 3, WIDTH)
    assert [(int(row), int(begin)) for row, begin in (rows.tokens == 9).nonzero()] == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_and_ranks_add_up(learning: Any, size: int) -> None:
    """Losses and gradients are the same whatever a process takes at a time."""
    module = learning()
    rows = module("train.packing").pack(drawn(), WIDTH)
    alone = module("train.ranks").Ranks(torch.device("cpu"))

    def taken(micro_batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        layout = module("train.layout").Copies(alone, torch.float64, 0)
        losses = module("train.sft").gradients(layout, rows, alone, micro_batch)
        return losses, {name: weight.grad for name, weight in layout.named_parameters()}

    whole, parts = taken(len(rows)), taken(size)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


def test_a_rank_without_rows_has_gradients_of_zero(learning: Any) -> None:
    """Which it can add to those of the others."""
    module = learning()

    class Second(module("train.ranks").Ranks):  # type: ignore[misc]
        added: list[Tensor]

        def add_up(self, tensors: Any) -> None:
            self.added = [*getattr(self, "added", []), *tensors]

    ranks = Second(torch.device("cpu"))
    ranks.rank, ranks.size = 1, 2
    layout = module("train.layout").Copies(ranks, torch.float32, 0)
    rows = module("train.packing").pack(drawn()[:2], WIDTH)
    losses = module("train.sft").gradients(layout, rows, ranks, 4)
    layout.update_selection_bias()
    routers = sum(type(part).__name__ == "Router" for part in layout.model.modules())
    assert len(rows) == 1 and not any(losses.values())
    assert len(ranks.added) == 1 + len(list(layout.model.parameters())) + routers
    assert not any(tensor.any() for tensor in ranks.added)


@pytest.mark.parametrize("name", ["tiny-r1", "tiny-window"])
def test_attention_keeps_what_it_claims(emitted: Any, name: str) -> None:
    """Storage by storage, as tests/graph/test_saved.py has it of pre-training: the mask is kept as numbers."""
    data = load(name).model_dump() | {"rl": {"max_new_tokens": 8}}
    program = build(ModelSpec.model_validate(data))
    module = emitted(emit(program))
    assert program.rows is not None
    blocks = program.rows.blocks.values()
    attends = [
        block for block in blocks if any(node.op.kind.startswith("document_attention") for node in block.nodes())
    ]
    assert len(attends) == (2 if name == "tiny-window" else 1)
    model, length = module("model").Model(), 24
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    for block in attends:
        part = next(part for part in model.modules() if type(part).__name__ == block.class_name)
        given = {
            "x": torch.randn(2, length, module("dims").HIDDEN_SIZE, requires_grad=True),
            "starts": torch.zeros(2, length, dtype=torch.int32),
            "rope": module("model").spread_pairs(module("model").rotary_table(length, torch.empty(0))),
        }
        kept: dict[int, int] = {}

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        function = getattr(module("train.packed"), function_name(block.class_name, block.method))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = function(part, *(given[value.name] for value in block.inputs))
        found = sorted(size for address, size in kept.items() if address not in known and size > 16)
        sizes = {"B": 2, "S": length}
        claimed = [storage.type.bytes.value(sizes) for storage in saved_storages(program.rows, block.key)]
        assert sorted(claimed) == found, block.key
        del out
