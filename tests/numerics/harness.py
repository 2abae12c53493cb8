"""From a model of transformers to an emitted package with the same weights, and how far the two are apart."""

import copy
import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from numerics.families import LENGTH, VOCABULARY, Case
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.compiler.hf import import_path
from dsc.spec.loader import loads
from dsc.spec.model import ModelSpec

Tensors = dict[str, Tensor]

SINGLE = "model.safetensors"

_numbers = itertools.count()


@dataclass(frozen=True)
class Package:
    """An emitted package, imported."""

    spec: ModelSpec
    folder: Path
    name: str

    @property
    def model(self) -> ModuleType:
        return importlib.import_module(f"{self.name}.model")

    @property
    def checkpoint(self) -> ModuleType:
        return importlib.import_module(f"{self.name}.checkpoint")

    def importer(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{name}")

    @property
    def storage(self) -> ModuleType:
        return importlib.import_module(f"{self.name}.storage")

    @property
    def engine(self) -> ModuleType:
        return importlib.import_module(f"{self.name}.infer.engine")

    def load(self, folder: Path) -> nn.Module:
        """A model with the weights of a checkpoint."""
        model: nn.Module = self.model.Model()
        self.checkpoint.load_hf(model, folder)
        return model

    def tensors(self, model: nn.Module) -> Tensors:
        """Copies of a model's tensors under the names of its checkpoint."""
        return {name: tensor.clone() for name, tensor in self.checkpoint.named_tensors(model)}


@dataclass(frozen=True)
class Oracle:
    """A model of transformers, and the folder that save_pretrained made of it."""

    model: Any
    folder: Path


def compile_package(text: str, folder: Path) -> Package:
    """The package of a spec's text, written and imported."""
    spec = loads(text, "spec.yaml")
    write(emit(build(spec)), folder / spec.package_name)
    return import_package(spec, folder / spec.package_name)


def import_package(spec: ModelSpec, folder: Path) -> Package:
    """A package folder under a name of its own, whatever the folder is called."""
    name = f"compared_{next(_numbers)}"
    found = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert found is not None and found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return Package(spec, folder, name)


def make_oracle(case: Case, folder: Path) -> Oracle:
    config = AutoConfig.for_model(case.family, **case.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    randomise(model, case.bias)
    model.save_pretrained(folder)
    return Oracle(model, folder)


@torch.no_grad()
def randomise(model: nn.Module, bias: tuple[float, float] = (-0.3, 0.3), seed: int = 1) -> None:
    """Weights large enough for every path to matter: a freshly drawn model is close to its own embedding."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            tensor.uniform_(*bias, generator=generator)
        elif isinstance(tensor, nn.Parameter) and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(tensor, nn.Parameter):
            std = 0.5 if "embed" in name else 0.7 * max(tensor.shape[-1], 1) ** -0.5
            tensor.normal_(0.0, std, generator=generator)


def imported_text(oracle: Oracle) -> str:
    """The spec that a user gets from a checkpoint's config.json."""
    return import_path(oracle.folder)


def random_model(package: Package, dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Module:
    """A model with large random weights."""
    model: nn.Module = package.model.Model().to(dtype)
    randomise(model, seed=seed)
    return model


def some_tokens(batch: int = 2, length: int = LENGTH, vocabulary: int = VOCABULARY, seed: int = 2) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def next_tokens(tokens: Tensor) -> Tensor:
    """Labels: at each position the token after it, none at the last."""
    return torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), 1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest element. A tensor of zeros allows no difference."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not expected.numel():
        return 0.0
    scale, difference = expected.abs().max().item(), (actual.double() - expected.double()).abs().max().item()
    if difference != difference or scale == 0.0:
        return float("inf") if difference else 0.0
    return difference / scale


def errors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The relative error of each tensor. Both sides must have the same ones."""
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    return {name: relative_error(actual[name], expected[name]) for name in expected}


def gradients_of(package: Package, model: nn.Module) -> Tensors:
    """A model's gradients under the names of its checkpoint."""
    trained = package.tensors(holding_gradients(model))
    return {name: tensor for name, tensor in trained.items() if not is_bias(name)}


def holding_gradients(model: nn.Module) -> nn.Module:
    """A copy of a model that has its gradients as its weights."""
    twin = copy.deepcopy(model)
    for copied, parameter in zip(twin.parameters(), model.parameters(), strict=True):
        copied.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return twin


def is_bias(name: str) -> bool:
    """The selection bias, which is not trained by gradients."""
    return name.endswith("e_score_correction_bias")


Compile = Callable[[str], Package]
OracleOf = Callable[[Case], Oracle]
