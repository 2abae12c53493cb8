"""spec/README.md: the language, key by key. `make goldens` writes it."""

from collections.abc import Mapping

from dsc.spec.reference import Entry, entries

HEAD = """# The language

Every key of a spec. `dsc explain KEY` says the same in a terminal, and editors do with `dsc schema`. [] stands for
each item of a list. A key without a default has to be there, and any key that is not listed is an error.

The last column is what a change of the key breaks for those who have checkpoints (they do not load, or what is computed
from them has another meaning), code, caches or plans: `dsc breaking OLD NEW` says it of two specs. tests/breaking holds
every entry against what happens when a checkpoint of one spec is loaded into the other.
"""
TABLE = """| key | takes | default | | a change breaks |
| --- | --- | --- | --- | --- |
"""
ROOT = "The model"


def language_page(breaks: Mapping[str, str]) -> str:
    """`breaks`: by key, the categories of `dsc breaking`."""
    tables: dict[str, list[Entry]] = {ROOT: []}
    known = entries()
    sections = {entry.section for entry in known if entry.section != entry.key}
    for entry in known:
        tables.setdefault(entry.section if entry.section in sections else ROOT, []).append(entry)
    parts = [
        f"## {title}\n\n{TABLE}" + "".join(_row(entry, breaks.get(entry.key, "")) for entry in rows)
        for title, rows in tables.items()
    ]
    return "\n".join([HEAD, *parts])


def _row(entry: Entry, breaks: str) -> str:
    only = f" ({', '.join(entry.kinds)})" if entry.kinds else ""
    default = "" if entry.default is None else f"`{entry.default}`"
    text = " ".join(entry.text.split()).replace("|", "\\|")
    return f"| `{entry.key}`{only} | {entry.takes} | {default} | {text} | {', '.join(breaks.split())} |\n"
