"""The command that headers name: what prints a package again, run in the folder that holds it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from dsc.spec.model import ModelSpec


def regenerate(
    spec: ModelSpec, source: str | Path | None = None, folder: str | Path = "", plan: str | None = None
) -> str:
    """`dsc compile` with a model of the zoo by its name, or with the spec's file as seen from beside `folder`; a plan
    that was named, too.

    Absolute paths are of one machine: where the file or the folder is given by one, the file's name alone is told.
    """
    path = Path(source or "")
    known = path.is_file() and str(path).isprintable()
    words = ["dsc", "compile", _shown(path, folder) if known else spec.name]
    return shlex.join(words if plan is None else [*words, "--plan", _shown(Path(plan), folder)])


def _shown(path: Path, folder: str | Path) -> str:
    absolute = path.is_absolute() or Path(folder).is_absolute()
    return path.name if absolute else Path(os.path.relpath(path, Path(folder).parent)).as_posix()
