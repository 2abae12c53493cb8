"""Packages that learn from rewards: the zoo's tiny-r1 with some keys of rl changed, each compiled once."""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dsc.compiler.driver import build, emit
from dsc.compiler.emit.write import write
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk
from rl.commands import run

Learning = Callable[..., Any]


def learning_spec(name: str = "tiny-r1", **rl: object) -> ModelSpec:
    spec = load(name)
    data = (spec if name.startswith("tiny") else shrunk(spec)).model_dump()
    data["rl"] = {"max_new_tokens": 8, "group_size": 4, **(data["rl"] or {}), **rl}
    return ModelSpec.model_validate(data)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def learning(emitted: Callable[[dict[str, str]], Any]) -> Learning:
    """Modules of the package of a spec, by the changed keys of its rl."""

    @cache
    def compiled(name: str = "tiny-r1", **rl: object) -> Any:
        return emitted(emit(build(learning_spec(name, **rl))))

    return compiled


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start commands beside."""
    folder = tmp_path_factory.mktemp("runs") / "package"
    write(emit(build(learning_spec(group_size=4))), folder)
    return folder


@pytest.fixture(scope="session")
def questions(package: Path) -> Path:
    """Digits to be written again."""
    draw, file = random.Random(0), package.parent / "questions.jsonl"
    rows = ({"prompt": f"{digit}>", "answer": digit} for digit in draw.choices("0123456789", k=50))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def start(package: Path, questions: Path) -> Path:
    """A short supervised run: answers end, and some are right."""
    folder = package.parent / "start"
    args = ("--learning-rate", "3e-3", "--batch-size", "16", "--metrics", folder.parent / "sft.jsonl")
    run(package, "sft", "--data", questions, "--steps", 30, "--checkpoint", folder, *args)
    return folder
