"""The whole package as a map from file name to text: the one function that compile, check, diff and tests share."""

from __future__ import annotations

from jinja2 import BaseLoader, Environment

from dsc.compiler.emit.checkpoint import checkpoint_file
from dsc.compiler.emit.formatting import format_files
from dsc.compiler.emit.header import header
from dsc.compiler.emit.kernels import kernel_files
from dsc.compiler.emit.lock import LOCK, lock_file
from dsc.compiler.emit.model import model_file
from dsc.compiler.emit.printer import Printer, environment
from dsc.compiler.emit.readme import readme_file
from dsc.compiler.emit.serving import serving_files
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec

MODEL = "model/model.py"
TRAINING = ("train/data.py", "train/log.py", "train/train.py")
PAGE_SIZE = 16  # tokens of a page of the cache
PACKAGES = ("", "train/", "infer/")  # folders that are importable


def emit_package(
    spec: ModelSpec,
    target: Target | None,
    training: Graph,
    serving: Graph,
    notes: tuple[str, ...] = (),
    templates: BaseLoader | None = None,
) -> dict[str, str]:
    """Every file of the package by its path in the folder, sorted; `templates` are looked at before our own."""
    printer = Printer(environment(templates))
    updates_bias = "Model.update_selection_bias" in training.blocks
    model = model_file(training, printer, spec.name, header(spec, MODEL))
    kernels = kernel_files(printer.templates, (training, serving), spec, target)
    files = {
        "model.py": model,
        "checkpoint.py": checkpoint_file(printer.templates, spec, training),
        "README.md": readme_file(printer.templates, spec, training, kernels, notes),
        **serving_files(printer, spec, serving, training, model, PAGE_SIZE),
        **{name: _print(printer.templates, spec, name, updates_bias=updates_bias) for name in TRAINING},
        **{f"{folder}__init__.py": header(spec, "package/__init__.py") + "\n" for folder in PACKAGES},
    }
    if kernels:
        files |= {"kernels/__init__.py": header(spec, "package/__init__.py") + "\n", **kernels}
    files = format_files(files)
    files[LOCK] = lock_file(spec, files)
    return dict(sorted(files.items()))


def _print(templates: Environment, spec: ModelSpec, name: str, **values: object) -> str:
    """A file whose template stands at the same place."""
    return templates.get_template(f"{name}.jinja").render(header=header(spec, name), spec=spec, **values)
