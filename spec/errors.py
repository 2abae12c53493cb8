"""The one error of dsc: coded findings with a position, what is wrong and what would be right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Each code has a page in pages.py, those of specs a case in tests/errors. A code, once published, keeps its meaning.
Code = Literal[
    # the file
    "DSC001",
    "DSC002",
    "DSC003",
    "DSC004",
    "DSC005",
    "DSC006",
    "DSC007",
    "DSC008",
    # the schema
    "DSC010",
    "DSC011",
    "DSC012",
    "DSC013",
    "DSC014",
    "DSC015",
    "DSC016",
    "DSC017",
    # the router
    "DSC020",
    "DSC021",
    "DSC022",
    "DSC023",
    "DSC024",
    "DSC025",
    "DSC026",
    "DSC027",
    # configs of Hugging Face
    "DSC030",
    "DSC031",
    # emitted packages
    "DSC040",
    "DSC041",
    "DSC042",
    "DSC043",
    "DSC044",
    # attention, positions and precision
    "DSC050",
    "DSC051",
    "DSC052",
    "DSC053",
    "DSC054",
    "DSC055",
    "DSC056",
    # layers, workload and cluster
    "DSC060",
    "DSC061",
    "DSC062",
    "DSC063",
    "DSC064",
    "DSC065",
    "DSC066",
    "DSC067",
    "DSC068",
    "DSC069",
    # placement
    "DSC070",
    "DSC071",
    "DSC072",
    # reinforcement learning
    "DSC080",
    "DSC081",
    "DSC082",
    # serving
    "DSC090",
    "DSC091",
    "DSC092",
]


@dataclass(frozen=True)
class Position:
    """A position in a file; line and column count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `key` is the path of the offending key, outermost first."""

    code: Code
    message: str
    key: tuple[str | int, ...] = ()
    help: str | None = None
    position: Position | None = None


class DscError(Exception):
    """Bad input, with every finding of the run. The command line prints them and exits with 2."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(f"{f.code}: {f.message}" for f in findings))
        self.findings = tuple(findings)
