"""Where kernels are put to the test: printed for a spec, imported, compared, and compiled ahead of time."""

import importlib
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor

from dsc.compiler.driver import build
from dsc.compiler.emit.dims import dims_file
from dsc.compiler.emit.file import File
from dsc.compiler.emit.formatting import format_files
from dsc.compiler.emit.kernels import add_kernels
from dsc.compiler.emit.package import file_printer
from dsc.compiler.kernels.target import TARGETS
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

MODELS = Path(__file__).parents[2] / "spec" / "models"

_numbers = itertools.count()


def spec_with(zoo: str, changes: Mapping[str, Any]) -> ModelSpec:
    """A model of the zoo with some keys changed, named by their path: {"ffn.moe.n_routed_experts": 6}."""
    yaml = YAML(typ="safe")
    tree = yaml.load((MODELS / f"{zoo}.yaml").read_text())
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "spec.yaml")
        with file.open("w") as stream:
            yaml.dump(tree, stream)
        return load(file)


def printed(names: tuple[str, ...], spec: ModelSpec, arch: str = "sm_90") -> dict[str, str]:
    """kernels/<name>.py for each name, those that they import, and dims.py, all by their name alone."""
    graph = build(spec).training
    printer = file_printer(spec, graph)
    files: dict[str, File] = {}
    add_kernels(files, printer, ["launch", *names], graph, TARGETS[arch])
    dims = dims_file(printer, files.values())
    return format_files({Path(file.path).name: file.text for file in (*files.values(), dims)})


def kernels(names: tuple[str, ...], zoo: str = "tiny", arch: str = "sm_90", **changes: Any) -> list[ModuleType]:
    """The modules for a model of the zoo; `changes` are spec keys with __ for the dot."""
    frozen = tuple(sorted((key.replace("__", "."), value) for key, value in changes.items()))
    return _kernels(names, zoo, arch, frozen)


@cache
def dims(zoo: str, **changes: Any) -> dict[str, int]:
    """The named dims of a model of the zoo."""
    spec = spec_with(zoo, {key.replace("__", "."): value for key, value in changes.items()})
    return {symbol.name: symbol.value() for symbol in build(spec).training.constants.symbols()}


@cache
def _kernels(names: tuple[str, ...], zoo: str, arch: str, changes: tuple[tuple[str, Any], ...]) -> list[ModuleType]:
    return package(printed(names, spec_with(zoo, dict(changes)), arch), names)


def package(files: Mapping[str, str], names: tuple[str, ...]) -> list[ModuleType]:
    """Files as a package of a name of its own; Triton reads the sources of its kernels, so they stay on disk."""
    folder = Path(tempfile.mkdtemp(prefix="kernels_"))
    (folder / "kernels").mkdir()
    for name, text in files.items():
        (folder / ("" if name == "dims.py" else "kernels") / name).write_text(text)
    for init in (folder / "__init__.py", folder / "kernels" / "__init__.py"):
        init.touch()
    name = f"kernels_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return [importlib.import_module(f"{name}.kernels.{module}") for module in names]


def mutated(name: str, old: str, new: str, zoo: str = "tiny", arch: str = "sm_90", **changes: Any) -> ModuleType:
    """A kernel with one planted fault in it, or in what it imports."""
    spec = spec_with(zoo, {key.replace("__", "."): value for key, value in changes.items()})
    return package(with_fault(printed((name,), spec, arch), old, new), (name,))[0]


def with_fault(files: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Files with `new` for `old`, which stands exactly once in all of them."""
    found = sum(text.count(old) for text in files.values())
    assert found == 1, f"{old!r} stands {found} times"
    return {name: text.replace(old, new) for name, text in files.items()}


def calc_diff(actual: Tensor, expected: Tensor) -> float:
    """1 - 2 <x, y> / (|x|^2 + |y|^2) in float64: the square of the relative error, halved (as DeepGEMM measures)."""
    x, y = actual.double().flatten(), expected.double().flatten()
    assert x.shape == y.shape and bool(x.isfinite().all()), f"{actual.shape} against {expected.shape}, or not finite"
    norm = (x @ x + y @ y).item()
    return 0.0 if norm == 0 else max(0.0, 1 - 2 * (x @ y).item() / norm)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(x: Tensor) -> Tensor:
    """x between NaNs, so that what is read past either end shows. A fault that stores there corrupts nothing else."""
    guard = 4096
    memory = torch.full((x.numel() + 2 * guard,), float("nan")).to(x.dtype)
    inner = memory[guard : guard + x.numel()].view(x.shape)
    return inner.copy_(x)
