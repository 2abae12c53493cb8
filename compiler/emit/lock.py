"""dsc.lock.json: what would otherwise churn every file - versions and hashes - once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version

from dsc.compiler.emit.file import File
from dsc.spec.model import ModelSpec

LOCK = "dsc.lock.json"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lock_text(spec: ModelSpec, files: Iterable[File]) -> str:
    """Compiler and formatter versions, the resolved spec's hash (comments and key order do not count), every file's."""
    lock = {
        "compiler": version("dsc-compiler"),
        "files": {file.path: {"sha256": sha256(file.text), "template": file.template} for file in files},
        "ruff": version("ruff"),
        "spec": spec.name,
        "spec_sha256": sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True)),
    }
    return json.dumps(lock, indent=2, sort_keys=True) + "\n"
