"""dsc completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """The script that completes dsc's command lines.

    \b
    bash: eval "$(dsc completion bash)" in ~/.bashrc
    zsh:  eval "$(dsc completion zsh)" in ~/.zshrc
    fish: dsc completion fish > ~/.config/fish/completions/dsc.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "dsc", "_DSC_COMPLETE").source())
