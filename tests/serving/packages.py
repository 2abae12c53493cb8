"""An emitted package for tests that need none in particular, and the same with a line of it changed."""

import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from numerics.harness import Package, import_package
from numerics.specs import SPECS

from dsc.compiler.driver import build, emit
from dsc.spec.loader import loads
from dsc.spec.model import ModelSpec

Change = tuple[str, *tuple[tuple[str, str], ...]]
"""A file of the package, and texts in it with what stands there instead."""


@cache
def package(name: str = "everything", change: Change | None = None) -> Package:
    """The package of a spec of numerics/specs.py by its name, or of a spec's text."""
    return package_of(loads(SPECS.get(name, name), "spec.yaml"), *([] if change is None else [change]))


def package_of(spec: ModelSpec, *changes: Change) -> Package:
    files = emit(build(spec))
    for file, *texts in changes:
        for old, new in texts:
            assert old in files[file], f"{file} has no {old!r}"
            files[file] = files[file].replace(old, new)
    folder = Path(tempfile.mkdtemp(prefix="serving-")) / spec.package_name
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return import_package(spec, folder)


def module(name: str, change: Change | None = None, spec: str = "everything") -> ModuleType:
    """infer/<name>.py of that package."""
    return import_module(f"{package(spec, change).name}.infer.{name}")
