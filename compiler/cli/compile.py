"""dsc compile."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from dsc.compiler.cli.arguments import PATH, complete_spec
from dsc.compiler.cli.console import report, say
from dsc.compiler.cli.exits import Exit
from dsc.compiler.cli.locked import PLAN

if TYPE_CHECKING:
    from dsc.compiler.planner.report.locked import LockedPlan
    from dsc.spec.model import ModelSpec


class Job(NamedTuple):
    """A spec that was named, as it was named, and the folder of its package."""

    spec: ModelSpec
    source: str
    folder: Path
    command: str
    """Does it."""
    plan: LockedPlan | None = None
    """That it keeps to; None where nothing is shared, or is yet to be planned."""
    plan_file: str | None = None
    """The plan's, where it was named."""
    title: str = ""
    """Of one among several, what its verdict begins with."""


@click.command("compile")
@click.argument("spec", required=False, shell_complete=complete_spec)
@click.option("-o", "--output", type=PATH, help="The package's folder.  [default: ./<name_with_underscores>]")
@click.option("--plan", type=PATH, help="Keep to this plan of `dsc plan -o`.  [default: plan.yaml beside SPEC]")
@click.option("--check", is_flag=True, help="Write nothing; show what differs, and exit with 1 if anything does.")
@click.option("--force", is_flag=True, help="Overwrite files that were edited by hand, too.")
@click.pass_context
def compile_command(
    ctx: click.Context, spec: str | None, output: str | None, plan: str | None, check: bool, force: bool
) -> None:
    """Write the package of a spec; without one, those that dsc.yaml lists.

    Headers name the spec's file as seen from beside the package, or its name alone where a path is absolute.

    With a plan, the package shares a training step among the ranks as the plan says, and nothing is searched. It is
    read from --plan, from plan.yaml beside SPEC, or from the package itself, the first that is there. Without one, a
    spec with a `cluster` and a `placement` is planned here.

    Edits by hand are kept: git merges them with what is emitted now. Where both changed the same lines, the file stays
    as it was edited, one beside it that ends in .merge shows both sides, and the exit code is 1.

    \b
    dsc.yaml, its paths as seen from its folder:
        packages:
          - {spec: specs/small.yaml, output: src/small}
          - {spec: specs/large.yaml, output: src/large}
    """
    if spec is None and plan is not None:
        raise click.UsageError("--plan is for one SPEC")
    jobs = _project(output) if spec is None else [_job(spec, output, plan)]
    done = [(_check(job) if check else _write(job, force)) for job in jobs]
    if not all(done):
        ctx.exit(Exit.SAID_NO)


def _job(source: str, output: str | None, plan_file: str | None = None) -> Job:
    from dsc.compiler.cli.locked import plan_for
    from dsc.spec.loader import load

    spec = load(source)
    folder = Path(output or spec.package_name)
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"{folder} is a file, not a folder")
    options = [*(["-o", output] if output else []), *(["--plan", plan_file] if plan_file else [])]
    command = shlex.join(["dsc", "compile", source, *options])
    return Job(spec, source, folder, command, plan_for(spec, source, folder, plan_file), plan_file)


def _project(output: str | None) -> list[Job]:
    """All that dsc.yaml lists, each spec read before any package is written."""
    from dsc.spec.errors import DscError, Finding
    from dsc.spec.project import PROJECT, load_project

    project = load_project()
    if project is None:
        raise click.UsageError(f"no SPEC, and no {PROJECT} here that lists some")
    if output is not None:
        raise click.UsageError(f"-o is for one SPEC; {PROJECT} says where its packages go")
    jobs: list[Job] = []
    findings: list[Finding] = []
    for package in project.packages:
        try:
            jobs.append(_job(package.spec, package.output)._replace(title=f"{package.output}: "))
        except DscError as error:
            findings += error.findings
    if findings:
        raise DscError(findings)
    return jobs


def _check(job: Job) -> bool:
    """Whether the package is what its spec compiles to."""
    from dsc.compiler.cli.compile_report import show_drift
    from dsc.compiler.emit.compare import compare

    files = _emitted(job)
    changes = compare(files, job.folder, _consumed(job))
    show_drift(changes, files, job.folder, job.title)
    if changes.drift:
        say(f"fix: {job.command}{' --force' if changes.edited else ''}")
    return not changes.drift


def _write(job: Job, force: bool) -> bool:
    """Whether nothing was in the way."""
    from dsc.compiler.cli.compile_report import show_next, show_written
    from dsc.compiler.driver import emit_again
    from dsc.compiler.emit.edits import clash_findings
    from dsc.compiler.emit.write import write
    from dsc.spec.errors import DscError

    try:
        written = write(_emitted(job), job.folder, force, emit_again, _consumed(job))
    except DscError as error:
        if not {finding.code for finding in error.findings} <= {"DSC040", "DSC043"}:
            raise
        report(error.findings)
        return False
    show_written(written, job.folder)
    clashes = clash_findings(written.edits, job.folder)
    if clashes:
        report(clashes)
    else:
        show_next(job.source, job.folder)
    return not clashes


def _emitted(job: Job) -> dict[str, str]:
    """The files of the package; where the compiler deviates from the spec, it says so."""
    from dsc.compiler.cli.located import pins_located
    from dsc.compiler.driver import build, emit
    from dsc.compiler.emit.command import regenerate

    with pins_located(job.source, job.spec):
        program = build(job.spec, locked=job.plan)
    for note in program.notes:
        say(f"note: {note}", stderr=True)
    return emit(program, command=regenerate(job.spec, job.source, job.folder, job.plan_file))


def _consumed(job: Job) -> frozenset[str]:
    """Files of the package that were read: what was edited there is in what is emitted, and not lost."""
    own = job.plan is not None and Path(job.plan.path).resolve() == (job.folder / PLAN).resolve()
    return frozenset({PLAN} if own else ())
