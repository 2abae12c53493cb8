"""This installation and this machine, for `dsc doctor`."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import show

COMPILER = ("dsc-compiler", "click", "jinja2", "pydantic", "rich", "ruamel.yaml", "ruff")
EMITTED = {
    "torch": "runs emitted packages",
    "triton": "kernels on a GPU",
    "safetensors": "checkpoints",
    "numpy": "token files",
    "tokenizers": "optional: text in and out",
    "transformers": "optional: the oracle of the tests",
}


def record() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "compiler": {name: version_of(name) for name in COMPILER},
        "emitted_code": {name: version_of(name) for name in EMITTED},
        "gpus": _gpus(),
    }


def show_environment() -> None:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    table.add_row("python", platform.python_version(), sys.executable)
    table.add_row("platform", platform.platform(), "")
    table.add_section()
    for name in COMPILER:
        table.add_row(name, version_of(name) or "not installed", "")
    table.add_section()
    for name, purpose in EMITTED.items():
        table.add_row(name, version_of(name) or "not installed", purpose)
    table.add_section()
    for gpu in _gpus() or ["none that nvidia-smi lists"]:
        table.add_row("GPU", gpu, "")
    show(table)


def pinned(distribution: str) -> str:
    """The one version that we ask for."""
    wanted = f"{distribution}=="
    return next(line.removeprefix(wanted) for line in requires("dsc-compiler") or () if line.startswith(wanted))


def version_of(distribution: str) -> str | None:
    """Of an installed distribution, from its metadata: nothing is imported."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """What NVIDIA's driver lists: name, memory, compute capability."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.splitlines() if found.returncode == 0 else []
