"""What several suites share: importing an emitted package, and making a spec small enough to run."""

import importlib
import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from dsc.spec.model import ModelSpec

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]
Shrink = Callable[[ModelSpec], ModelSpec]

# How fast a busy machine draws examples says nothing about them.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_numbers = itertools.count()


def importer(folder: Path) -> Importer:
    """Modules of the package in a folder by their name in it, as a package of a name of its own."""
    name = f"emitted_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return lambda module: importlib.import_module(f"{name}.{module}")


def pytest_configure(config: pytest.Config) -> None:
    # Emitted packages of one name differ from test to test; two workers would read each other's in one cache.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    os.environ["MYPY_CACHE_DIR"] = str(Path(__file__).parents[1] / ".mypy_cache" / worker)
    config.addinivalue_line("markers", "needs_git: skipped where there is no git")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_git") and shutil.which("git") is None:
        pytest.skip("needs git")


@pytest.fixture(scope="session")
def package_at() -> Callable[[Path], Importer]:
    return importer


@pytest.fixture(scope="session")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    """Writes the files of a package to a fresh folder and imports from there."""

    def write(files: Mapping[str, str]) -> Importer:
        folder = tmp_path_factory.mktemp("package")
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return importer(folder)

    return write


@pytest.fixture(scope="session")
def shrunk() -> Shrink:
    return shrink


def shrink(spec: ModelSpec) -> ModelSpec:
    """The same architecture with every choice kept and every size small."""
    data = spec.model_dump()
    attention, ffn = data["attention"], data["ffn"]
    data |= {"vocab_size": 96, "hidden_size": 64, "workload": {"sequence_length": 32}}
    for section in [attention] if "kind" in attention else attention.values():
        _shrink_attention(section)
    if ffn["dense"]:
        ffn["dense"]["intermediate_size"] = 104
    if ffn["moe"]:
        ffn["moe"] |= {"n_routed_experts": 16, "moe_intermediate_size": 32}
    for group in data["layers"]:
        group["repeat"] = min(group["repeat"], 2)
    return ModelSpec.model_validate(data)


def _shrink_attention(attention: dict[str, Any]) -> None:
    if attention["kind"] == "mla":
        attention |= {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16}
        attention["q_lora_rank"] = attention["q_lora_rank"] and 40
    else:
        shared = attention["num_key_value_heads"] < attention["num_attention_heads"]
        attention |= {"num_key_value_heads": 2 if shared else 4, "head_dim": 20}
    if attention["kind"] == "window":
        attention["window"] = 10
    attention["num_attention_heads"] = 4
