"""Running dsc as a user does: a command line in, exit code, standard output and standard error out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dsc.compiler.cli import main

Run = Callable[..., Result]
ERRORS = Path(__file__).parent.parent / "errors"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In an empty folder; anything raised that is no exit fails the test, as does another exit code than `code`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert code is None or result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def facts(run: Run) -> Callable[..., Any]:
    """The object that a verb prints with --json."""

    def call(*arguments: str | Path, code: int = 0) -> Any:
        return json.loads(run(*arguments, "--json", code=code).stdout)

    return call


@pytest.fixture
def bad_spec() -> Path:
    """One whose errors are many."""
    return ERRORS / "DSC020-everything-at-once" / "spec.yaml"
