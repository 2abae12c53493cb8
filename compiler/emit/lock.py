"""dsc.lock.json: the versions and hashes that would otherwise churn every file, and what it takes to emit again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dsc.compiler.emit.file import File
from dsc.spec.model import ModelSpec

LOCK = "dsc.lock.json"


@dataclass(frozen=True)
class Emission:
    """What was emitted, as its lock says."""

    hashes: Mapping[str, str]
    """sha256 of each file, by its path."""
    spec: str
    """The resolved spec as JSON."""
    command: str
    """The command that headers name."""


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def lock_text(spec: ModelSpec, command: str, files: Iterable[File]) -> str:
    """Compiler and formatter versions, the resolved spec and its hash (comments and key order do not count), every
    file's hash, and the command."""
    resolved = spec.model_dump(mode="json")
    lock = {
        "command": command,
        "compiler": version("dsc-compiler"),
        "files": {file.path: {"sha256": sha256(file.text), "template": file.template} for file in files},
        "ruff": version("ruff"),
        "spec": resolved,
        "spec_sha256": sha256(json.dumps(resolved, sort_keys=True)),
    }
    return json.dumps(lock, indent=2, sort_keys=True) + "\n"


def read_lock(path: Path) -> Emission | None:
    """None where the file is missing or is no lock."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        hashes = {str(name): str(entry["sha256"]) for name, entry in lock["files"].items()}
        return Emission(hashes, json.dumps(lock.get("spec")), str(lock.get("command")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
