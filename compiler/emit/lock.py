"""dsc.lock.json: what would otherwise churn every file - versions and hashes - once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version

from dsc.spec.model import ModelSpec

LOCK = "dsc.lock.json"
HEADER = re.compile(r"with the template (\S+)\.$", re.MULTILINE)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lock_file(spec: ModelSpec, files: Mapping[str, str]) -> str:
    """Compiler and formatter versions, the resolved spec's hash (comments and key order do not count), every file's."""
    entries = {
        name: {"sha256": sha256(text), "template": _template(name, text)} for name, text in sorted(files.items())
    }
    lock = {
        "compiler": version("dsc-compiler"),
        "files": entries,
        "ruff": version("ruff"),
        "spec": spec.name,
        "spec_sha256": sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True)),
    }
    return json.dumps(lock, indent=2, sort_keys=True) + "\n"


def _template(name: str, text: str) -> str:
    """As the file's header says; Markdown has no header."""
    found = HEADER.search(text)
    return found[1] if found else f"package/{name.lower()}"
