"""The command that headers name: what prints a package again, run in the folder that holds it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from dsc.spec.model import ModelSpec


def regenerate(spec: ModelSpec, source: str | Path | None = None, folder: str | Path = "") -> str:
    """`dsc compile` with a model of the zoo by its name, or with the spec's file as seen from beside `folder`.

    Absolute paths are of one machine: where the file or the folder is given by one, the file's name alone is told.
    """
    path = Path(source or "")
    if not path.is_file() or not str(path).isprintable():
        return f"dsc compile {spec.name}"
    absolute = path.is_absolute() or Path(folder).is_absolute()
    shown = path.name if absolute else Path(os.path.relpath(path, Path(folder).parent)).as_posix()
    return f"dsc compile {shlex.quote(shown)}"
