"""dsc explain."""

from __future__ import annotations

import re

import click
from click.shell_completion import CompletionItem

from dsc.spec.pages import PAGES


def complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Codes, with their titles."""
    return [CompletionItem(code, help=title) for code, title in titles().items() if code.startswith(incomplete.upper())]


def titles() -> dict[str, str]:
    """What each code is about."""
    from dsc.compiler.facts.breaking_rules import RULES

    return {code: page.title for code, page in PAGES.items()} | {code: rule.title for code, rule in RULES.items()}


@click.command()
@click.argument("topic", required=False, shell_complete=complete_topic)
def explain(topic: str | None) -> None:
    """A page about TOPIC: an error's code (DSC020, or 20), a rule of `dsc breaking` (BRK103), or a key of a spec.

    Without one, the list of codes. A key is dotted: attention.rope.layout.
    """
    from dsc.compiler.cli.pages import explain_code, explain_key, list_codes

    if topic is None:
        list_codes()
        return
    number = re.fullmatch(r"(?:DSC)?(\d{1,3})", topic, re.IGNORECASE)
    code = f"DSC{int(number[1]):03}" if number else topic.upper()
    if not explain_code(code) and not explain_key(topic):
        raise click.UsageError(f"{topic!r} is no code and no key; `dsc explain` lists the codes")
