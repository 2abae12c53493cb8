"""The tuning table: the tile that a launch runs with, by architecture, dims and number of rows.

A file `tiles/<kernel>.toml` for each kernel, rows in order of preference:

    [[forward]]                         # the launch that the row is for
    arch = ["sm_80", "sm_90"]
    dims = {block = 8192}               # sizes that it is for; left out: any
    rows = 64                           # run-time rows (tokens) up to which it is used; left out: any number
    tile = {rows = 1, num_warps = 8}    # what the template prints
    origin = "guessed"                  # or "measured NVIDIA H200 2026-11-23"
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
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
    fits = [row for row in table(kernel).get(launch, []) if target.arch in row["arch"] and _serves(row, dims)]
    if not fits:
        raise NoTile(f"{kernel}: no tile of {launch} for {target.arch} at {dict(dims)}")
    most = max(len(row.get("dims", {})) for row in fits)
    chosen = [Tile(row.get("rows"), row["tile"], row["origin"]) for row in fits if len(row.get("dims", {})) == most]
    for tile in chosen:
        taken = shared_memory(tile.numbers)
        if taken > target.shared_memory:
            text = f"{kernel}: {launch} with {dict(tile.numbers)} takes {taken:,} B of shared memory"
            raise TileTooLarge(f"{text}, {target.arch} has {target.shared_memory:,} B")
    chosen.sort(key=lambda tile: (tile.rows is None, tile.rows or 0))
    assert chosen[-1].rows is None, f"{kernel}: {launch} on {target.arch} has no tile for any number of rows"
    return tuple(chosen)


@cache
def table(kernel: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a kernel by launch."""
    return tomllib.loads((files("dsc.compiler.kernels") / "tiles" / f"{kernel}.toml").read_text("utf-8"))


def _serves(row: Mapping[str, Any], dims: Numbers) -> bool:
    return all(dims.get(name) == size for name, size in row.get("dims", {}).items())
