"""The whole package: the one function that compile, check, diff and tests share."""

from __future__ import annotations

from dataclasses import replace

from jinja2 import BaseLoader

from dsc.compiler.emit.checkpoint import checkpoint_file
from dsc.compiler.emit.command import regenerate
from dsc.compiler.emit.dims import dims_file
from dsc.compiler.emit.file import File, FilePrinter, needs_triton
from dsc.compiler.emit.formatting import format_files
from dsc.compiler.emit.kernels import kernel_files
from dsc.compiler.emit.launch import launch_files, plan_file
from dsc.compiler.emit.lock import LOCK, lock_text
from dsc.compiler.emit.model import definitions, model_file
from dsc.compiler.emit.posttraining import posttraining_files
from dsc.compiler.emit.printer import Printer, environment
from dsc.compiler.emit.readme import readme_file
from dsc.compiler.emit.serving import serving_files
from dsc.compiler.emit.training import training_files
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.passes.capture import uncaptured
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.policy import Policies
from dsc.spec.model import ModelSpec

STORAGE, COMMAND, TOGETHER = "package/storage.py", "package/command.py", "package/together.py"
INIT = "__init__.py"


def emit_package(
    printer: FilePrinter,
    target: Target | None,
    plain: Graph,
    training: Graph,
    step: TrainingStep,
    serving: Graph,
    policies: Policies | None = None,
    rows: Graph | None = None,
    notes: tuple[str, ...] = (),
    plan: str = "",
) -> dict[str, str]:
    """Every file of the package by its path in the folder, sorted."""
    files = python_files(printer, target, plain, training, step, serving, policies, rows)
    files += [plan_file(plan)] if plan else []
    files += launch_files(printer, step.sharing, plain) if step.sharing is not None else []
    files.append(readme_file(printer, training, files, notes))
    texts = format_files({file.path: file.text for file in files})
    files = sorted((replace(file, text=texts[file.path]) for file in files), key=lambda file: file.path)
    lock = lock_text(printer.spec, printer.command, files)
    return dict(sorted({**{file.path: file.text for file in files}, LOCK: lock}.items()))


def file_printer(spec: ModelSpec, graph: Graph, templates: BaseLoader | None = None, command: str = "") -> FilePrinter:
    """`templates` are looked at before our own; `command` prints the package again."""
    return FilePrinter(environment(templates), spec, graph.constants, command or regenerate(spec))


def python_files(
    printer: FilePrinter,
    target: Target | None,
    plain: Graph,
    training: Graph,
    step: TrainingStep,
    serving: Graph,
    policies: Policies | None,
    rows: Graph | None,
) -> list[File]:
    """All modules, not formatted."""
    model = definitions(training, plain, Printer(printer.templates))
    captures = target is not None and not uncaptured(serving)
    files = [
        model_file(printer, training, model),
        checkpoint_file(printer, training),
        printer.file("storage.py", STORAGE),
        printer.file("command.py", COMMAND),
        printer.file("together.py", TOGETHER, sharing=step.sharing),
        *serving_files(printer, serving, training, model, captures),
        *training_files(printer, step, training, plain, model),
        *posttraining_files(printer, policies, rows, training, step, serving, model, captures),
        *kernel_files(printer, (step.graph, training, serving, *([] if rows is None else [rows])), target),
    ]
    files.append(dims_file(printer, files))
    folders = sorted({file.path.rpartition("/")[0] for file in files})
    inits = dict.fromkeys(folders, f"package/{INIT}")
    if needs_triton(files):
        inits["kernels"] = "package/kernels.py"
    return files + [printer.file(f"{folder}/{INIT}".lstrip("/"), template) for folder, template in inits.items()]
