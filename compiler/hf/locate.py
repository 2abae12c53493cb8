"""Where in a config.json the keys of findings stand."""

import re
from dataclasses import replace
from pathlib import Path

from dsc.compiler.hf.model_types import ALIASES
from dsc.spec.errors import DscError, Finding, Position


def located(error: DscError, file: Path) -> DscError:
    """The same findings, each at its key in the file; at the beginning where the file does not have the key."""
    text = file.read_text("utf-8")
    return DscError(
        [found if found.position else replace(found, position=_place(found, text, file)) for found in error.findings]
    )


def _place(finding: Finding, text: str, file: Path) -> Position:
    """A key of the spec has its section before it, one of the config the key of the mapping around it."""
    offset = 0
    for part in finding.key:
        names = [str(part), *(alias for alias, name in ALIASES if name == part)]
        found = re.compile(rf'"({"|".join(map(re.escape, names))})"\s*:').search(text, offset)
        offset = found.start(1) if found else offset
    before = text[:offset]
    return Position(str(file), before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)
