"""The two sides of `dsc breaking`, and its answer for people, scripts and pull requests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import click
from rich.text import Text

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.cli.console import give_verdict, print_json, say, tell
from dsc.compiler.driver import build, emit
from dsc.compiler.facts.breaking import Break, Side
from dsc.compiler.facts.breaking_rules import RULES, Category
from dsc.compiler.hf import checkpoint_names
from dsc.spec.loader import loads, position_of
from dsc.spec.model import ModelSpec
from dsc.spec.report import annotation

# What a spec that breaks nothing of a category keeps.
KEPT: dict[Category, str] = {
    "checkpoint": "checkpoints load",
    "meaning": "they mean the same",
    "python": "imports work",
    "plan": "caches and plans fit",
}


def side(spec: ModelSpec) -> Side:
    return Side(spec, build_graph(spec), asdict(checkpoint_names(spec)), emit(build(spec)))


def at_revision(path: str, revision: str) -> ModelSpec:
    """The spec that a file held in a git revision."""
    file = Path(path)
    command = ["git", "-C", str(file.parent), "show", f"{revision}:./{file.name}"]
    try:
        shown = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        raise click.UsageError("--against asks git, which is not installed") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().removeprefix("fatal: ")
        raise click.UsageError(f"--against {revision}: {said}") from None
    return loads(shown.stdout, f"{revision}:{path}")


def report_breaks(found: Sequence[Break], names: tuple[str, str], looked_for: Sequence[Category], format: str) -> None:
    if format == "json":
        print_json({"breaking": records(found)})
    elif format == "github":
        for breach in found:
            text = f"{breach.rule.title}: {breach.message}"
            click.echo(annotation(breach.code, text, position_of(names[1], breach.key)))
    else:
        show_breaks(found, names, looked_for)


def records(found: Sequence[Break]) -> list[dict[str, object]]:
    return [{**asdict(breach), "category": breach.rule.category, "title": breach.rule.title} for breach in found]


def show_breaks(found: Sequence[Break], names: tuple[str, str], looked_for: Sequence[Category]) -> None:
    """The verdict, then each rule that is broken with what breaks it."""
    between = f"{names[0]} -> {names[1]}"
    if not found:
        give_verdict("compatible", True, between)
        say(f"  {', '.join(KEPT[category] for category in looked_for)}")
        return
    give_verdict("breaking", False, f"{between}: {', '.join(dict.fromkeys(breach.rule.category for breach in found))}")
    for code, breaks in groupby(found, key=lambda breach: breach.code):
        say(Text.assemble("\n", (f"{code} {RULES[code].title}", "bold"), f" ({RULES[code].category})"))
        for breach in breaks:
            tell(breach.message, "  ")
