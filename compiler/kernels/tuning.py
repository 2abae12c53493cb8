"""The tuning table: the tile that a launch runs with, by architecture, dims and number of rows.

A file `tiles/<kernel>.toml` for each kernel, rows in order of preference:

    [[forward]]                         # the launch that the row is for
    arch = ["sm_80", "sm_90"]
    dims = {block = 8192}               # sizes that it is for; left out: any
    rows = 64                           # run-time rows (tokens) up to which it is used; left out: any number
    tile = {rows = 1, num_warps = 8}    # what the template prints
    origin = "guessed"                  # or "measured NVIDIA H200 2026-11-23"

    [grid.forward]                      # what `dsc bench --tune` tries in place of a row's numbers
    num_warps = [4, 8, 16]
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from dsc.compiler.kernels.target import Target

Numbers = Mapping[str, int]


class NoTile(Exception):
    """No row of the table serves a launch on an architecture; the kernel cannot be used there."""


class TileTooLarge(Exception):
    """A row of the table takes more shared memory than the architecture has."""


@dataclass(frozen=True)
class Tile:
    """One row of the table, chosen."""

    rows: int | None
    """Run-time rows up to which it is used; None: any number."""
    numbers: Numbers
    origin: str

    def __getitem__(self, name: str) -> int:
        return self.numbers[name]


def tiles(
    kernel: str, launch: str, target: Target, dims: Numbers, shared_memory: Callable[[Numbers], int] = lambda tile: 0
) -> tuple[Tile, ...]:
    """The rows for a launch, by rising number of run-time rows, the last one for any number.

    The most specific rows win: those that name most of the dims. `shared_memory` says how many bytes a tile takes.
    Raises NoTile, TileTooLarge.
    """
    if (tried := _trials.get((kernel, launch))) is not None:
        return (_checked(kernel, launch, Tile(None, tried, "tried"), target, shared_memory),)
    fits = [row for row in table(kernel).get(launch, []) if target.arch in row["arch"] and _serves(row, dims)]
    if not fits:
        raise NoTile(f"{kernel}: no tile of {launch} for {target.arch} at {dict(dims)}")
    most = max(len(row.get("dims", {})) for row in fits)
    best = [Tile(row.get("rows"), row["tile"], row["origin"]) for row in fits if len(row.get("dims", {})) == most]
    chosen = [_checked(kernel, launch, tile, target, shared_memory) for tile in best]
    chosen.sort(key=lambda tile: (tile.rows is None, tile.rows or 0))
    assert chosen[-1].rows is None, f"{kernel}: {launch} on {target.arch} has no tile for any number of rows"
    if _asked is not None:
        _asked[kernel, launch] = Asked(chosen[-1].numbers, dims)
    return tuple(chosen)


def _checked(kernel: str, launch: str, tile: Tile, target: Target, shared_memory: Callable[[Numbers], int]) -> Tile:
    taken = shared_memory(tile.numbers)
    if taken > target.shared_memory:
        text = f"{kernel}: {launch} with {dict(tile.numbers)} takes {taken:,} B of shared memory"
        raise TileTooLarge(f"{text}, {target.arch} has {target.shared_memory:,} B")
    return tile


@dataclass(frozen=True)
class Asked:
    """What a kernel was given for a launch, and for which dims."""

    tile: Numbers
    dims: Numbers


_trials: dict[tuple[str, str], Numbers] = {}
_asked: dict[tuple[str, str], Asked] | None = None


@contextmanager
def trial(kernel: str, launch: str, tile: Numbers) -> Iterator[None]:
    """Within, a launch gets this tile, whatever the table says."""
    _trials[kernel, launch] = tile
    try:
        yield
    finally:
        del _trials[kernel, launch]


def asked(kernel: str, render: Callable[[], object]) -> dict[str, Asked]:
    """The tiles for any number of rows that a kernel asks for while it is printed, by launch."""
    global _asked
    _asked = {}
    try:
        render()
        return {launch: tile for (name, launch), tile in _asked.items() if name == kernel}
    finally:
        _asked = None


def grid(kernel: str) -> dict[str, dict[str, list[int]]]:
    """The numbers to try, by launch."""
    found: dict[str, dict[str, list[int]]] = _file(kernel).get("grid", {})
    return found


@cache
def table(kernel: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a kernel by launch."""
    return {launch: rows for launch, rows in _file(kernel).items() if launch != "grid"}


@cache
def _file(kernel: str) -> dict[str, Any]:
    return tomllib.loads((files("dsc.compiler.kernels") / "tiles" / f"{kernel}.toml").read_text("utf-8"))


def _serves(row: Mapping[str, Any], dims: Numbers) -> bool:
    return all(dims.get(name) == size for name, size in row.get("dims", {}).items())
