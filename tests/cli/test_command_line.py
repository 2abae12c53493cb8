"""The command line as a whole: its verbs and options are frozen, it starts quickly and fails politely."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dsc.compiler.cli import main
from dsc.compiler.cli.exits import Exit
from dsc.compiler.cli.group import VERBS

# What scripts are written against. A change here is a change of the contract.
OPTIONS = {
    "init": {"FILE", "--from", "--force"},
    "check": {"SPECS", "--format"},
    "stats": {"SPEC", "--compare", "--context", "--batch", "--markdown", "--json"},
    "plan": {
        *("SPEC", "--mode", "--cluster", "--nodes", "--gpus", "--context", "--redundant", "--loads"),
        *("--explain", "--for", "--answer", "--target-ttft", "--target-tpot", "--acceptance", "--price"),
        *("-o", "--output", "--report", "--trace", "--json"),
    },
    "diff": {"FIRST", "SECOND", "--files", "--breaking", "--hashes", "--json"},
    "breaking": {"SPECS", "--against", "--only", "--format"},
    "compile": {"SPEC", "-o", "--output", "--check", "--force", "--plan"},
    "verify": {"SPEC", "--json"},
    "bench": {
        "PACKAGE",
        "--tokens",
        "--check",
        "--experts",
        "--kernel",
        "--device",
        "--compile",
        "--tune",
        "-o",
        "--output",
    },
    "shrink": {"SPEC", "-o", "--output"},
    "import": {"PATH", "-o", "--output"},
    "export": {"SPEC", "-o", "--output"},
    "zoo": {"NAME", "--json"},
    "schema": set(),
    "explain": {"TOPIC"},
    "doctor": {"--json"},
    "completion": {"SHELL"},
}


def command(verb: str) -> click.Command:
    found = main.get_command(click.Context(main), verb)
    assert found is not None
    return found


def names(parameter: click.Parameter) -> list[str]:
    return [str(parameter.name).upper()] if isinstance(parameter, click.Argument) else list(parameter.opts)


def test_verbs_and_options_are_frozen() -> None:
    assert {verb: {name for p in command(verb).params for name in names(p)} for verb in VERBS} == OPTIONS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run: Any, verb: str) -> None:
    assert command(verb).name == verb
    assert run(verb, "-h").stdout.startswith("Usage: ")
    assert f"  {verb} " in run("--help").stdout


def test_version(run: Any) -> None:
    assert run("--version").stdout.startswith("dsc ")


def test_a_misspelt_verb_is_told_the_nearest(run: Any) -> None:
    assert "did you mean 'compile'?" in run("compil", code=2).stderr
    assert "`dsc --help` lists the verbs" in run("zzzz", code=2).stderr


def test_bad_input_has_one_report_and_no_traceback(run: Any, bad_spec: Path) -> None:
    for arguments in (
        ("stats", bad_spec),
        ("stats", "tiny", "--compare", bad_spec),
        ("compile", bad_spec),
        ("diff", "tiny", bad_spec),
        ("shrink", bad_spec),
        ("verify", bad_spec),
        ("export", bad_spec),
    ):
        result = run(*arguments, code=2)
        assert "error[DSC065]" in result.stderr and not result.stdout
    assert "did you mean 'tiny'?" in run("stats", "tinny", code=2).stderr
    assert "error[DSC001]" in run("stats", "/", code=2).stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (AssertionError("no tile"), Exit.CRASH, "AssertionError: no tile\nerror: this is a fault of dsc"),
        (RecursionError("too deep"), Exit.CRASH, "please report it"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted"),
        (OSError(28, "No space left on device"), Exit.BAD_INPUT, "error: no space left on device"),
    ],
)
def test_a_crash_is_no_verdict(monkeypatch: Any, run: Any, raised: BaseException, code: int, said: str) -> None:
    """1 means that a check said no; whoever scripts dsc must not take a fault of ours for that."""

    def build(spec: object, locked: object = None) -> None:
        raise raised

    monkeypatch.setattr("dsc.compiler.driver.build", build)
    result = CliRunner().invoke(main, ["compile", "tiny", "--check"])
    assert result.exit_code == code and said in result.stderr


def test_unwritable_output_is_bad_input(run: Any) -> None:
    for arguments in (("compile", "tiny"), ("shrink", "tiny"), ("export", "tiny")):
        result = run(*arguments, "-o", "/proc/no/such", code=2)
        assert result.stderr.startswith("error: /proc/no") and result.stderr.count("\n") == 1


def dsc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a process of its own, its output piped."""
    program = "import sys; from dsc.compiler.cli import main; main(sys.argv[1:], prog_name='dsc')"
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, check=False)


def test_colours_follow_the_terminal_and_the_environment(bad_spec: Path) -> None:
    arguments = ("check", str(bad_spec))
    assert "\x1b" not in dsc(*arguments).stderr
    assert "\x1b[1;31merror[DSC065]" in dsc(*arguments, FORCE_COLOR="1", TERM="xterm").stderr
    # NO_COLOR takes colours away; bold is no colour.
    assert "31m" not in dsc(*arguments, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").stderr


def imported(*arguments: str, folder: Path, **environment: str) -> set[str]:
    """The top-level modules, and dsc's own, that a run has loaded."""
    program = (
        "import sys; from dsc.compiler.cli import main\n"
        "try: main(sys.argv[1:], prog_name='dsc')\n"
        "except SystemExit as done: assert not done.code\n"
        "print('\\nmodules', *sys.modules)"
    )
    command = [sys.executable, "-c", program, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=os.environ | environment)
    return set(ran.stdout.splitlines()[-1].split()[1:])


def test_the_compiler_never_imports_torch(tmp_path: Path) -> None:
    for arguments in (
        ("compile", "tiny"),
        ("stats", "tiny"),
        ("diff", "tiny", "tiny"),
        ("plan", "tiny", "--cluster", "cpu", "--report", "plan.html"),
        ("shrink", "tiny"),
        ("export", "tiny"),
        ("zoo",),
        ("doctor", "--json"),
    ):
        assert not {"torch", "triton", "safetensors", "numpy", "transformers"} & imported(*arguments, folder=tmp_path)


# What takes long to import: libraries, the schema, and every room of the compiler but this one.
LIBRARIES = {"jinja2", "numpy", "pydantic", "ruamel.yaml", "ruff", "torch", "triton"}
LIGHT = re.compile(
    r"dsc\.compiler\.(cli|facts$|facts\.breaking_rules$)|dsc\.spec\.(errors|code_page|pages|pages_of_runs|words|zoo)$"
)


def heavy(modules: set[str]) -> set[str]:
    return {
        name for name in modules if name in LIBRARIES or (re.match(r"dsc\.\w+\.\w", name) and not LIGHT.match(name))
    }


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_that_takes_long(verb: str, tmp_path: Path) -> None:
    modules = imported(*([verb] if verb else []), "--help", folder=tmp_path)
    assert not heavy(modules) and not {"rich", "importlib.metadata"} & modules


@pytest.mark.parametrize("words", ["dsc st", "dsc stats deepseek-v", "dsc plan tiny --mo", "dsc explain DSC02"])
def test_completion_imports_nothing_that_takes_long(words: str, tmp_path: Path) -> None:
    asked = {"_DSC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    modules = imported(folder=tmp_path, **asked)
    assert not heavy(modules) and not {"rich", "importlib.metadata"} & modules


def test_the_zoo_is_listed_and_a_spec_checked_without_the_compiler(tmp_path: Path) -> None:
    assert not heavy(imported("zoo", folder=tmp_path))
    loaded = heavy(imported("check", "tiny", folder=tmp_path))
    assert "pydantic" in loaded, "what is looked for is found where it is"
    assert not [name for name in loaded if name.startswith(("dsc.compiler", "jinja2"))]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Any, shell: str) -> None:
    assert "_DSC_COMPLETE" in run("completion", shell).stdout
    for words, expected in (
        ("stats deepseek-v", "plain,deepseek-v3"),
        ("plan tiny --cluster h", "plain,h800"),
        ("init --from ti", "plain,tiny"),
        ("zoo gb", "plain,gb300"),
        ("explain dsc02", "plain,DSC020\texperts that do not form equal groups"),
        ("explain BRK1", "plain,BRK103"),
    ):
        completed = dsc(_DSC_COMPLETE="fish_complete", COMP_WORDS=f"dsc {words}", COMP_CWORD=words.split()[-1])
        assert expected in completed.stdout
    completed = dsc(_DSC_COMPLETE="fish_complete", COMP_WORDS="dsc stats deepseek-v3", COMP_CWORD="deepseek-v3")
    assert "plain,deepseek-v3" in completed.stdout
