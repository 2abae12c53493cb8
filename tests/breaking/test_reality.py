"""The verdict of `dsc breaking` against what happens: a checkpoint of OLD goes into NEW, and logits are compared."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from breaking.changes import CHANGES, Change
from dsc.compiler.cli.breaking_report import side
from dsc.compiler.driver import build, emit
from dsc.compiler.facts.breaking import Side, breaks
from dsc.compiler.facts.breaking_rules import CATEGORIES
from dsc.spec.model import ModelSpec
from dsc.spec.reference import entries

TOKENS = 48
SAME = 1e-12  # of logits in float64 that are computed by the same operations


def broken(change: Change) -> list[str]:
    _, new = change.specs()
    found = {one.rule.category for one in breaks(side_of(change.base), side(new))}
    return [category for category in CATEGORIES if category in found]


@cache
def side_of(base: str) -> Side:
    return side(next(change.specs()[0] for change in CHANGES if change.base == base))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_the_verdict_is_the_one_in_the_table(change: Change) -> None:
    assert broken(change) == change.breaks.split()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-token")
def test_the_verdict_is_what_happens(change: Change, emitted: Callable[..., Any], tmp_path: Path) -> None:
    old, new = (load(spec, emitted) for spec in change.specs())
    torch.manual_seed(0)
    ours = old("model").Model().double()
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.ndim == 1:  # gains and biases, which are all one and all zero at first
                tensor += torch.rand_like(tensor) * 0.1
    old("checkpoint").save_hf(ours, tmp_path)
    theirs = new("model").Model().double()
    try:
        new("checkpoint").load_hf(theirs, tmp_path)
    except ValueError:
        assert "checkpoint" in broken(change)
        return
    assert "checkpoint" not in broken(change)
    tokens = torch.randint(change.specs()[0].vocab_size, (2, TOKENS))
    difference = (ours.eval()(tokens) - theirs.eval()(tokens)).abs().max().item()
    shows = "meaning" in broken(change) and not change.key.endswith("compute_dtype")  # float64 is no narrower
    assert difference > SAME if shows else difference <= SAME


def load(spec: ModelSpec, emitted: Callable[..., Any]) -> Callable[[str], ModuleType]:
    found: Callable[[str], ModuleType] = emitted(emit(build(spec)))
    return found


def test_every_key_of_the_language_is_changed() -> None:
    """Sections are by their keys, `kind` by another section, and names are the user's."""
    keys = [one.key for one in entries() if not one.key.endswith((".kind", ".<name>"))]
    leaves = {key for key in keys if not any(other.startswith((f"{key}.", f"{key}[")) for other in keys)}
    assert leaves <= {change.schema_key for change in CHANGES}
