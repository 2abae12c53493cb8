"""dsc bench."""

from __future__ import annotations

from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsc.compiler.cli.arguments import PATH
from dsc.compiler.cli.console import console, say
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.spec.model import ModelSpec


@click.command()
@click.argument("package", type=PATH)
@click.option("--tokens", type=click.IntRange(min=1), multiple=True, help="Rows of the inputs.  [default: 4096]")
@click.option("--check", "odd", type=click.IntRange(min=1), multiple=True, help="Rows to check and not to time.")
@click.option("--experts", type=click.IntRange(min=1), help="Routed experts on this GPU: of an expert-parallel shard.")
@click.option("--kernel", "only", multiple=True, help="Only this kernel; may be given more than once.")
@click.option("--device", help="Where to run.  [default: cuda]", default="cuda")
@click.option("--compile/--no-compile", "compiled", default=True, help="Measure torch.compile of the reference too.")
@click.option("--tune", "tuned", metavar="SPEC", help="Try other tiles; SPEC is what the package was compiled from.")
@click.option("-o", "--output", type=PATH, help="Append results to this file, and skip those in it.")
@click.pass_context
def bench(
    ctx: click.Context,
    package: str,
    tokens: tuple[int, ...],
    odd: tuple[int, ...],
    experts: int | None,
    only: tuple[str, ...],
    device: str,
    compiled: bool,
    tuned: str | None,
    output: str | None,
) -> None:
    """Measure the kernels of a package on this GPU, at the sizes of its model.

    Each against its reference first, three times (exit code 1 if one is wrong or raises), then its speed against the
    machine's own copy and products, the plain PyTorch of the same file, torch.compile of it, and PyTorch's operator
    where there is one.
    On `--device cpu` kernels run their reference: that shows only that everything runs. With `--tune`, tiles of the
    declared grids run instead, and rows for the tuning table are proposed where one is faster.
    """
    from dsc.compiler.verify.verify import missing_libraries

    folder = Path(package)
    if not (folder / "kernels").is_dir():
        raise click.UsageError(f"{package} is no package with kernels: give the folder that `dsc compile` wrote")
    if missing_libraries():
        say("error: this runs emitted code, which needs torch", stderr=True)
        ctx.exit(Exit.BAD_INPUT)
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        say("error: no GPU that torch can use; --device cpu runs the references", stderr=True)
        ctx.exit(Exit.BAD_INPUT)
    from dsc.compiler.bench.machine import measure_machine
    from dsc.compiler.bench.run import subjects
    from dsc.compiler.bench.session import Sitting, run
    from dsc.compiler.cli.bench_table import show_results
    from dsc.spec.loader import load

    kernels = subjects(folder, experts)
    if unknown := sorted({*only} - kernels.keys()):
        raise click.UsageError(f"no such kernel in {package}: {', '.join(unknown)}; it has {', '.join(kernels)}")
    if tuned is not None:
        _tune([name for name in kernels if name in only or not only], load(tuned), folder, tokens or (4096,), device)
        return
    machine = measure_machine(device)
    chosen = [kernel for name, kernel in kernels.items() if name in only or not only]
    sitting = Sitting(folder.resolve().name, device, tokens or (4096,), odd, compiled, Path(output) if output else None)
    with console(stderr=True).status("measuring") as status:
        results = list(run(chosen, machine, sitting, status.update))
    show_results(results, machine)
    if not all(result.correct for result in results):
        ctx.exit(Exit.SAID_NO)


def _tune(kernels: list[str], spec: ModelSpec, folder: Path, tokens: tuple[int, ...], device: str) -> None:
    """Prints what was tried as it comes, then the rows."""
    from dsc.compiler.bench.clock import seconds
    from dsc.compiler.bench.machine import device_name
    from dsc.compiler.bench.tune import proposals, trials
    from dsc.compiler.driver import build

    program = build(spec)
    if program.target is None:
        raise click.UsageError(f"{spec.name} names no cluster, so its package has no kernels")
    origin = f"measured {device_name(device)} {date.today().isoformat()}"
    for count in tokens:
        for kernel in kernels:
            tried = []
            for trial in trials(kernel, program, folder, count, device, partial(seconds, device=device)):
                tried.append(trial)
                times = ", ".join(f"{case} {time * 1e6:.1f} us" for case, time in trial.times.items())
                say(f"{kernel}.{trial.launch} {dict(trial.tile)}: {times or trial.note}", stderr=True)
            for proposal in proposals(tried):
                say(proposal.row(program.target.arch, origin) + "\n")
