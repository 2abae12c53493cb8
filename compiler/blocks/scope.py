"""Where the numbers of one kind stand: below a key in the spec, behind a prefix in the code if it has siblings."""

from dataclasses import dataclass

from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Axis, Dim, Symbol


@dataclass(frozen=True)
class Scope:
    """One of the attentions or feed-forwards; `siblings` says that the model has others of its family."""

    constants: Constants
    name: str
    key: str
    siblings: bool

    @property
    def prefix(self) -> str:
        """Before constants: WINDOW_, or nothing."""
        return f"{self.name.upper()}_" if self.siblings else ""

    def class_name(self, family: str, alone: str) -> str:
        """WindowAttention; `alone` where there is no other."""
        return f"{self.name.capitalize()}{family}" if self.siblings else alone

    def dim(self, name: str, size: int, key: str, letter: str | None = None, axis: Axis | None = None) -> Symbol:
        """A size that the spec gives, under a key of the section."""
        return self.constants.dim(f"{self.prefix}{name}", size, f"{self.key}.{key}", letter, axis)

    def derived(self, name: str, definition: Dim, axis: Axis | None = None) -> Symbol:
        """A size made of other sizes."""
        return self.constants.derived(f"{self.prefix}{name}", definition, axis=axis)

    def number(self, name: str, value: float | int, key: str) -> str:
        """A number that is no size. Returns the name."""
        return self.constants.number(f"{self.prefix}{name}", value, f"{self.key}.{key}")

    def expression(self, name: str, formula: str, *made_of: str) -> str:
        """A number computed from other constants, which fill the formula's fields. Returns the name."""
        return self.constants.expression(f"{self.prefix}{name}", formula, *made_of)
