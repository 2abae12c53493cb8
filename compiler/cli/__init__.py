"""The command line: `dsc VERB`. One small module for each verb, imported when the verb runs."""

from dsc.compiler.cli.group import main

__all__ = ["main"]
