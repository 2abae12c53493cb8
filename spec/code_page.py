"""What `dsc explain CODE` says of one code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    title: str
    text: str
    wrong: str
    right: str
