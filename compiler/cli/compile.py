"""dsc compile."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsc.compiler.cli.arguments import PATH, spec_argument
from dsc.compiler.cli.console import give_verdict, report, say, show_diff
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.compiler.emit.write import Changes


@click.command("compile")
@spec_argument
@click.option("-o", "--output", type=PATH, help="The package's folder.  [default: ./<name_with_underscores>]")
@click.option("--check", is_flag=True, help="Write nothing; show what differs, and exit with 1 if anything does.")
@click.option("--force", is_flag=True, help="Overwrite files that were edited by hand, too.")
@click.pass_context
def compile_command(ctx: click.Context, spec: str, output: str | None, check: bool, force: bool) -> None:
    """Write the package of a spec.

    Headers name the spec's file as seen from beside the package, or its name alone where a path is absolute.
    Files that were edited by hand since they were emitted are not overwritten: nothing is written then, and the exit
    code is 1.
    """
    from dsc.compiler.driver import build, emit
    from dsc.compiler.emit.command import regenerate
    from dsc.compiler.emit.write import compare, write
    from dsc.spec.errors import DscError
    from dsc.spec.loader import load

    loaded = load(spec)
    program = build(loaded)
    folder = Path(output or loaded.package_name)
    files = emit(program, command=regenerate(loaded, spec, folder))
    for note in program.notes:
        say(f"note: {note}", stderr=True)
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"{folder} is a file, not a folder")
    changes = compare(files, folder)
    if check:
        _show_drift(changes, files, folder)
        if changes.drift:
            say(f"fix: {_command(spec, output, force=bool(changes.edited))}")
            ctx.exit(Exit.SAID_NO)
        return
    try:
        write(files, folder, force)
    except DscError as error:
        if force or not changes.edited:
            raise
        report(error.findings)
        ctx.exit(Exit.SAID_NO)
    say(f"{folder.as_posix()}: {_summary(changes, 'written', 'deleted')}")
    package = folder.resolve().name
    if package.isidentifier():
        say(f"next: read {(folder / 'README.md').as_posix()}; {shlex.join(['dsc', 'verify', spec])}; {_train(folder)}")
    else:
        say(f"note: Python cannot import a folder named {package!r}; rename or copy it", stderr=True)


def _show_drift(changes: Changes, files: Mapping[str, str], folder: Path) -> None:
    """A diff of the files that stand on both sides, less the lock's hashes; those that stand on one are named."""
    from dsc.compiler.emit.lock import LOCK
    from dsc.compiler.facts.diff import unified

    give_verdict(
        "drift" if changes.drift else "up to date", not changes.drift, _summary(changes, "to write", "to delete")
    )
    for name in sorted(({*changes.changed, *changes.edited} & files.keys()) - {LOCK}):
        current = (folder / name).read_text(encoding="utf-8", errors="replace")
        show_diff(unified(current, files[name], (folder / name).as_posix()))
    wording = {"missing": changes.new, "stale": changes.stale, "changed": changes.changed}
    for word, names in {**wording, "edited by hand": changes.edited}.items():
        for name in names:
            say(f"{word}: {(folder / name).as_posix()}")


def _summary(changes: Changes, written: str, deleted: str) -> str:
    """3 files to write, 2 unchanged, 1 edited by hand."""
    count = len(changes.new) + len(changes.changed)
    parts = [f"{count} file{'' if count == 1 else 's'} {written}", f"{len(changes.unchanged)} unchanged"]
    if changes.stale:
        parts.append(f"{len(changes.stale)} {deleted}")
    if changes.edited:
        parts.append(f"{len(changes.edited)} edited by hand")
    return ", ".join(parts)


def _train(folder: Path) -> str:
    """The command that shows how to train the package, from here."""
    parent = folder.parent.as_posix()
    start = "" if parent == "." else f"cd {shlex.quote(parent)} && "
    return f"{start}python -m {folder.resolve().name}.train.train --help"


def _command(spec: str, output: str | None, force: bool) -> str:
    words = ["dsc", "compile", spec, *(["-o", output] if output else []), *(["--force"] if force else [])]
    return shlex.join(words)
