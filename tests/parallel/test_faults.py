"""What test_layouts.py compares can differ: faults planted in emitted code are caught."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAULTS: dict[str, tuple[str, str, str]] = {
    "gradients are averaged over dp": (
        "train/weights.py",
        "module.set_gradient_divide_factor(1.0)",
        "module.set_gradient_divide_factor(2.0)",
    ),
    "the embedding's copies are not summed": (
        "train/parallel.py",
        "        sum_copies(self.stages, self.tied)\n",
        "",
    ),
    "the copy counts in the norm": (
        "train/gradients.py",
        "copies(stages, READERS[1:])",
        "copies(stages, ())",
    ),
    "the norm leaves out other ranks' experts": (
        "train/gradients.py",
        "dist.all_reduce(squares[1:], group=mesh.ep)",
        "pass",
    ),
    "labels are counted on each rank alone": (
        "train/batch.py",
        "    dist.all_reduce(counts, group=dp)\n",
        "",
    ),
    "the balance loss is not a share": (
        "train/stages.py",
        "balance_loss / counts[0, -1]",
        "balance_loss / 1",
    ),
    "loads are not summed": (
        "train/parallel.py",
        "            dist.all_reduce(router.expert_load, group=self.mesh.dp)\n",
        "",
    ),
    "rows come back to the wrong tokens": (
        "train/experts.py",
        "torch.empty_like(h).index_put((by_expert,), h)",
        "h.index_select(0, by_expert)",
    ),
    "ranks draw the first experts' weights": (
        "train/weights.py",
        "seed, first_row, first_expert if is_expert(weight) else 0)",
        "seed, first_row, 0)",
    ),
}

OF_CONTEXT: dict[str, tuple[str, str, str]] = {
    "the first half sees the second's keys": (
        "train/context.py",
        "(rank + 1) * chunk, (2 * CP - rank) * chunk",
        "(2 * CP - rank) * chunk, (2 * CP - rank) * chunk",
    ),
    "keys are in the order of ranks": ("train/context.py", "chunks[:, 1::2].flip(1)", "chunks[:, 1::2]"),
    "positions begin anew on each rank": (
        "train/stages.py",
        "rope = own_part(rope, self.rank)",
        "rope = own_part(rope, 0)",
    ),
    "labels are counted in a part": ("train/stages.py", "counts[0, 0]", "(labels != -100).sum()"),
    "the balance loss is of a part": ("train/context.py", 'all_reduce(counts, "sum", self.group)', "counts"),
    "loads are not summed over cp": (
        "train/parallel.py",
        "router.expert_load, group=self.mesh.dp_cp",
        "router.expert_load, group=self.mesh.dp",
    ),
    "what is beyond the end chooses experts": ("train/context.py", "depth if has_end else 0", "0"),
    "what is beyond the end has labels": ("train/stages.py", "value=-100", "value=0"),
    "tokens ahead are those of the rank": (
        "train/stages.py",
        "mtp_tokens = tokens.roll(-1, 1)\n        mtp_tokens = own_part(mtp_tokens, self.rank)",
        "mtp_tokens = own_tokens.roll(-1, 1)",
    ),
}


OF_TENSOR: dict[str, tuple[str, str, str]] = {
    "gradients of norms are of one rank's tokens": (
        "train/weights.py",
        "of_part if weight in parts else dense",
        "of_part",
    ),
    "a rank has other columns": ("train/weights.py", "mesh.tp.rank() * len(weight) if dim == 0", "0 if dim == 0"),
    "a rank has other rows": (
        "train/weights.py",
        "chunk(TP, 1)[mesh.tp.rank()]",
        "chunk(TP, 1)[TP - 1 - mesh.tp.rank()]",
    ),
    "the norm leaves out other ranks' heads": (
        "train/gradients.py",
        "dist.all_reduce(squares[1], group=mesh.tp)",
        "pass",
    ),
    "the norm counts twice what all have": (
        "train/gradients.py",
        "all_reduce(squares[1], ",
        "all_reduce(squares[:2], ",
    ),
    "the largest logit is a shard's": (
        "train/tensor.py",
        'all_reduce(logits.detach().amax(-1), "max", group)',
        "logits.detach().amax(-1)",
    ),
    "a label is sought in the first shard": (
        "train/tensor.py",
        "place = tokens - group.rank() * size",
        "place = tokens",
    ),
    "tokens of other shards are embedded": ("train/tensor.py", ".masked_fill(elsewhere.unsqueeze(-1), 0)", ""),
    "keys are in no order": (
        "train/tensor.py",
        "return all_gather_single_autograd(x.contiguous(), 1, group)",
        "return all_gather_single_autograd(x.contiguous(), 1, group).roll(1, 1)",
    ),
    "the balance loss is of a part": ("train/tensor.py", 'all_reduce(counts, "sum", self.group)', "counts"),
    "loads are not summed over tp": (
        "train/parallel.py",
        "router.expert_load, group=self.mesh.dp_tp",
        "router.expert_load, group=self.mesh.dp",
    ),
    "what is beyond the end chooses experts": ("train/tensor.py", "depth if has_end else 0", "0"),
    "the end is another rank's": ("train/tensor.py", "group.rank() + 1 == TP", "group.rank() == 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, placed_spec: Any, compared: Callable[..., Any], planted: Any, tmp_path: Path
) -> None:
    spec = placed_spec("deepseek", {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "schedule": "dualpipe-v"})
    difference, equal_biases = compared(spec, tmp_path, "float64", planted(*FAULTS[fault]))
    assert difference > 1e-6 or not equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("fault", OF_CONTEXT)
def test_so_it_is_where_sequences_are_shared(
    fault: str, placed_spec: Any, compared: Callable[..., Any], planted: Any, tmp_path: Path
) -> None:
    difference, equal_biases = compared(
        placed_spec("deepseek", {"cp": 2}), tmp_path, "float64", planted(*OF_CONTEXT[fault])
    )
    assert difference > 1e-6 or not equal_biases


@pytest.mark.slow
@pytest.mark.parametrize("fault", OF_TENSOR)
def test_so_it_is_where_heads_and_widths_are_shared(
    fault: str, placed_spec: Any, compared: Callable[..., Any], planted: Any, tmp_path: Path
) -> None:
    difference, equal_biases = compared(
        placed_spec("deepseek", {"tp": 2}), tmp_path, "float64", planted(*OF_TENSOR[fault])
    )
    assert not difference <= 1e-6 or not equal_biases


V = {"pp": 2, "vpp": 2, "dp": 2}
ZBV, TURNS = {**V, "schedule": "zbv"}, {**V, "ep": 2, "schedule": "dualpipe-v"}
LATE: dict[str, tuple[str, dict[str, Any], tuple[str, str, str]]] = {
    "reduced in the backward of inputs, too early": (
        "llama",
        {**ZBV, "zero": 2},
        (
            "train/split.py",
            "group.post_backward()\n        fully_shard.state(root)._root_post_backward_final_callback()",
            "pass",
        ),
    ),
    "reduced before products that are put off": (
        "deepseek",
        {**TURNS, "zero": 3},
        ("train/tape.py", "self.put_off.append(partial(reduce, layer))", "reduce(layer)"),
    ),
    "never reduced, split": (
        "llama",
        {**ZBV, "zero": 3},
        ("train/split.py", "group.post_backward()", "group.reduce_grads = False"),
    ),
    "never reduced, in turns": (
        "deepseek",
        {**TURNS, "zero": 2},
        ("train/tape.py", "        group.post_backward()", "        group.reduce_grads = False"),
    ),
    "the last layer is left out": (
        "deepseek",
        {**ZBV, "zero": 3},
        ("train/split.py", "self.submod.parameters(), own)", "self.submod.parameters(), own if index else [])"),
    ),
}
"""Of gradients of weights that are made after the backward of inputs."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", LATE)
def test_so_it_is_where_backward_is_split(
    fault: str, placed_spec: Any, compared: Callable[..., Any], planted: Any, tmp_path: Path
) -> None:
    model, placement, change = LATE[fault]
    difference, equal_biases = compared(placed_spec(model, placement), tmp_path, "float64", planted(*change))
    assert not difference <= 1e-6 or not equal_biases
