"""Running dsc as a user does: a command line in, exit code, standard output and standard error out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dsc.compiler.cli import main
from dsc.compiler.cli.exits import Exit

Run = Callable[..., Result]
ERRORS = Path(__file__).parent.parent / "errors"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In an empty folder; a crash fails the test, as does another exit code than `code`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, code: int | None = 0, input: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        result = CliRunner().invoke(main, words, input=input, catch_exceptions=False)
        assert result.exit_code == code if code is not None else result.exit_code != Exit.CRASH, result.output
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
