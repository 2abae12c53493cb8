"""The command `dsc`: its verbs, their help, and what a failure looks like."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from dsc.compiler.cli.exits import Exit
from dsc.spec.errors import DscError
from dsc.spec.words import nearest


class Verb(NamedTuple):
    """Where a verb is implemented (an attribute of a module of this package), and its line in `dsc --help`."""

    module: str
    attribute: str
    help: str


VERBS = {
    "init": Verb("init", "init", "Write a commented starter spec."),
    "check": Verb("check", "check", "Check specs: schema and semantics, all errors at once."),
    "stats": Verb("stats", "stats", "Parameters, FLOPs and cache bytes of a model, or of two side by side."),
    "plan": Verb(
        "plan", "plan_command", "Memory and placement: do training or serving fit, how fast, and why not otherwise?"
    ),
    "diff": Verb("diff", "diff", "What differs between two specs, down to the emitted files, or between two plans."),
    "breaking": Verb("breaking", "breaking", "What a change breaks: checkpoints, meaning, Python, caches and plans."),
    "compile": Verb("compile", "compile_command", "Write the package of a spec, or those that dsc.yaml lists."),
    "verify": Verb("verify", "verify", "Shrink, emit and run a spec here: does the code do what the graph says?"),
    "bench": Verb("bench", "bench", "Measure the kernels of a package on this GPU."),
    "shrink": Verb("shrink", "shrink", "The same architecture at toy dims."),
    "import": Verb("huggingface", "import_command", "Hugging Face config.json -> spec."),
    "export": Verb("huggingface", "export_command", "Spec -> Hugging Face config.json."),
    "zoo": Verb("zoo", "zoo", "The models and clusters that ship with dsc."),
    "schema": Verb("schema", "schema", "The JSON Schema of specs, for editors."),
    "explain": Verb("explain", "explain", "What a code or a key means; without one, the codes."),
    "doctor": Verb("doctor", "doctor", "Versions and environment."),
    "completion": Verb("completion", "completion", "The script that completes dsc's command lines in a shell."),
}


class Verbs(click.Group):
    """Imports a verb's module when it is called, so that `dsc --help` and `dsc check` stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        command = getattr(importlib.import_module(f"dsc.compiler.cli.{verb.module}"), verb.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A misspelt verb is told the nearest one."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            close = nearest(args[0], VERBS)
            hint = "`dsc --help` lists the verbs" if close is None else f"did you mean {close!r}?"
            ctx.fail(f"no such verb: {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Errors of the user end in one report, never in a traceback; ours never in an exit code of a check."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # usage, an exit code, a reader that has gone: click knows what to do
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            click.echo(f"error: {place}{(error.strerror or str(error)).lower()}", err=True)
            ctx.exit(Exit.BAD_INPUT)
        except DscError as error:
            from dsc.compiler.cli.console import report

            report(error.findings)
            ctx.exit(Exit.BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(Exit.INTERRUPTED)
        except Exception:
            import traceback

            traceback.print_exc()
            click.echo("error: this is a fault of dsc, not of its input; please report it", err=True)
            ctx.exit(Exit.CRASH)


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="SPEC is the path of a spec or the name of a model of the zoo. "
    "Exit codes: 0 fine, 1 the check said no, 2 bad input or usage, 3 a fault of dsc.",
)
@click.version_option(None, "--version", package_name="dsc-compiler", message="dsc %(version)s")
def main() -> None:
    """A compiler for language-model architectures: YAML in, readable PyTorch out."""
