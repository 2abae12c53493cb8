"""What can be said of the goldens without running them: types, lint, format, and the promises of the design."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "generated"
PACKAGES = sorted(path.name for path in GENERATED.iterdir())
PYTHON = sorted(path for path in GENERATED.rglob("*.py"))
RUFF = (sys.executable, "-m", "ruff")
SETTINGS = ("--isolated", "--no-cache", "--line-length=120", "--target-version=py311")

ALLOWED = {"torch", "triton", "safetensors", "numpy"} | sys.stdlib_module_names
OPTIONAL = {
    "jinja2",
    "math_verify",
    "pyarrow",
    "rich",
    "starlette",
    "tokenizers",
    "uvicorn",
    "wandb",
}  # inside a function, where their absence has a remedy
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")


def identify(path: Path) -> str:
    return path.relative_to(GENERATED).as_posix()


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=GENERATED, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"


def test_the_types_are_right() -> None:
    config = f"--config-file={Path(__file__).with_name('mypy.ini')}"
    packages = [argument for name in PACKAGES for argument in ("--package", name)]
    run(sys.executable, "-m", "mypy", config, *packages)


def test_the_linter_finds_nothing() -> None:
    run(*RUFF, "check", *SETTINGS, "--select=E,F,W,I,B,UP,C4,SIM", "--ignore=SIM108", ".")


def test_the_formatter_changes_nothing() -> None:
    run(*RUFF, "format", *SETTINGS, "--check", ".")


@pytest.mark.parametrize("package", PACKAGES)
def test_text_is_ascii_without_paths_of_this_machine(package: str) -> None:
    for path in (GENERATED / package).rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text("ascii")
            assert str(ROOT) not in text and "/tmp" not in text, path


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Top-level names of the libraries that a file imports, and whether without fail when the file is imported."""
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy_nodes = {id(inner) for node in [*lazy, *type_checking_blocks(tree)] for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], id(node) not in lazy_nodes) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0], id(node) not in lazy_nodes


def type_checking_blocks(tree: ast.Module) -> list[ast.If]:
    return [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]


def foreign_imports(source: str) -> list[str]:
    found = imports(ast.parse(source))
    return [name for name, eager in found if name not in ALLOWED and (eager or name not in OPTIONAL)]


@pytest.mark.parametrize("path", PYTHON, ids=identify)
def test_only_allowed_libraries_are_imported(path: Path) -> None:
    assert not foreign_imports(path.read_text())


def test_an_import_that_is_not_allowed_is_found() -> None:
    source = "import os, torch.nn\nfrom .model import Model\nimport dsc.spec\nfrom rich import box\n"
    inside = "def f():\n    import rich\n    import yaml\n"
    assert foreign_imports(source + inside) == ["dsc", "rich", "yaml"]


def settled_branches(source: str) -> list[str]:
    """Tests of branches that read constants only: the compiler should have decided them.

    What a function is given or makes is none, even in capitals, as in kernels what Triton compiles for each value.
    """
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = [node for function in functions for node in ast.walk(function)]
    inside = {node.arg for node in inner if isinstance(node, ast.arg)}
    inside |= {
        node.target.id for node in inner if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    branches = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.While)]
    names = {id(test): [n.id for n in ast.walk(test) if isinstance(n, ast.Name)] for test in branches}
    calls = {id(test) for test in branches if any(isinstance(n, ast.Call | ast.Attribute) for n in ast.walk(test))}
    return [
        ast.unparse(test)
        for test in branches
        if id(test) not in calls and all(CONSTANT.fullmatch(name) and name not in inside for name in names[id(test)])
    ]


# Byte tokens and token files mean what the vocabulary allows; both stand in files that are the same for every spec.
SETTLED = {"VOCAB_SIZE <= 2 ** 16", "VOCAB_SIZE < NUM_BYTES", "TYPE_CHECKING"}


@pytest.mark.parametrize("path", PYTHON, ids=identify)
def test_nothing_branches_on_a_constant(path: Path) -> None:
    found = set(settled_branches(path.read_text()))
    assert found <= (SETTLED if path.name in ("data.py", "log.py", "text.py") else set())


def test_a_branch_on_a_constant_is_found() -> None:
    source = "if NUM_GROUPS > 1:\n    x = 1 if TOP_K else 2\nif x > TOP_K:\n    pass\nif True:\n    pass\n"
    assert sorted(settled_branches(source)) == ["NUM_GROUPS > 1", "TOP_K", "True"]


def unused_constants(sources: dict[str, str]) -> list[str]:
    """Constants of a package that no line of it reads; an import elsewhere is a use only if that file reads it too."""
    defined: list[tuple[str, str]] = []
    read: set[str] = set()
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
            defined += [(name, t.id) for t in targets if isinstance(t, ast.Name) and CONSTANT.fullmatch(t.id)]
    return [f"{name}: {constant}" for name, constant in defined if constant not in read]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_constant_is_used(package: str) -> None:
    sources = {identify(path): path.read_text() for path in PYTHON if identify(path).startswith(f"{package}/")}
    assert not unused_constants(sources)


def test_a_constant_without_use_is_found() -> None:
    assert unused_constants({"a.py": "A = 1\nB = A + 1\nC: int = 3\n", "b.py": "print(C)"}) == ["a.py: B"]
