"""The command line: `dsc VERB`. One small module for each verb, imported when the verb is named.

A verb's module declares its arguments and help. What the verb works with (the schema, the graph, rich) is imported when
it runs, so that help and completion are instant.
"""

from dsc.compiler.cli.group import main

__all__ = ["main"]
