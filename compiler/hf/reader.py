"""Reads a config.json key by key, collecting all that is wrong; a key that nobody asked about is an error too.

A key that is absent has the default of transformers' configuration class. Null is not absent: transformers keeps it,
computes something else with it, refuses it or falls over it. So null is an error wherever no meaning of it is given.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from dsc.spec.errors import Code, DscError, Finding
from dsc.spec.words import dotted, one_of, shown

NOT_UNDERSTOOD: Code = "DSC030"
NOT_SUPPORTED: Code = "DSC031"

_MISSING = object()


class ConfigReader:
    """One mapping of a config. A wrong value gives a finding and a stand-in, so that reading goes on to the next."""

    def __init__(self, config: Mapping[str, object], key: tuple[str, ...] = (), findings: list[Finding] | None = None):
        self._config = config
        self._key = key
        self._known: set[str] = set()
        self.findings: list[Finding] = [] if findings is None else findings
        self.notes: list[str] = []
        """What is left out, as it changes nothing."""

    def integer(self, key: str, default: int | None = None, null: int | None = None, stand_in: int = 1) -> int:
        """Without a default the key must be there, without a meaning of null it must not be null."""
        value = self._value(key, default, null)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._wrong(key, value, "an integer")
        return stand_in

    def number(self, key: str, default: float | None = None, null: float | None = None) -> float:
        value = self._value(key, default, null)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        self._wrong(key, value, "a number")
        return 1.0

    def flag(self, key: str, default: bool, null: bool | None = None) -> bool:
        value = self._value(key, default, null)
        if isinstance(value, bool):
            return value
        self._wrong(key, value, "true or false")
        return default

    def text(self, key: str, default: str, null: str | None = None) -> str:
        value = self._value(key, default, null)
        if isinstance(value, str):
            return value
        self._wrong(key, value, "a text")
        return default

    def integers(self, key: str) -> list[int]:
        """A list of integers, empty where the key is absent or null."""
        value = self._value(key, [], [])
        if isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return value
        self._wrong(key, value, "a list of integers")
        return []

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty where the key is absent or null."""
        value = self._value(key, [], [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        self._wrong(key, value, "a list of texts")
        return []

    def token_ids(self, key: str, default: int | None) -> list[int]:
        """One id or a list of them; none where it is null."""
        value = self._value(key, default, None)
        ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            return ids
        self._wrong(key, value, "an integer or a list of integers")
        return []

    def section(self, key: str) -> "ConfigReader | None":
        """The mapping under a key, None where it is absent, null or empty."""
        value = self._value(key, {}, {})
        if isinstance(value, dict):
            return ConfigReader(value, (*self._key, key), self.findings) if value else None
        self._wrong(key, value, "a mapping")
        return None

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._config.get(key) is not None

    def is_null(self, key: str) -> bool:
        return self._config.get(key, _MISSING) is None

    def refuse_null(self, *keys: str) -> None:
        """Keys that are not read, or that have a meaning of null in other types."""
        for key in keys:
            if self.is_null(key):
                self._wrong(key, None, "left out or have a value")

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing in what the model computes."""
        self._known.update(keys)

    def only(self, key: str, allowed: Iterable[object], help: str) -> None:
        """A key that may be absent or one of these values, because the language has nothing else to say."""
        self._known.add(key)
        if key in self._config and self._config[key] not in allowed:
            self.refuse(key, f"{self._name(key)}: {shown(self._config[key])} is not supported", help)

    def refuse(self, key: str, message: str, help: str) -> None:
        self._known.add(key)
        self._add(Finding(NOT_SUPPORTED, message, (*self._key, key), help))

    def refuse_unknown(self) -> None:
        """Call last: a key that was not read or ignored may change what the model computes, unless it is null."""
        for key in self._config:
            if key not in self._known and self.has(key):
                help = "remove the key if the model does not depend on it"
                value = shown(self._config[key])
                self.refuse(key, f"{self._name(key)} is {value}: the meaning of this key is unknown", help)

    def raise_findings(self) -> None:
        if self.findings:
            raise DscError(self.findings)

    def _value(self, key: str, default: object, null: object) -> object:
        self._known.add(key)
        value = self._config.get(key, default)
        return null if value is None and key in self._config else value

    def _wrong(self, key: str, value: object, expected: str) -> None:
        says = f"is {shown(value)}" if key in self._config else "is missing"
        message = f"{self._name(key)} {says}, must be {expected}"
        self._add(Finding(NOT_UNDERSTOOD, message, (*self._key, key)))

    def _add(self, finding: Finding) -> None:
        """A key may be read for several sections; what is wrong with it counts once."""
        if finding not in self.findings:
            self.findings.append(finding)

    def _name(self, key: str) -> str:
        return dotted((*self._key, key))


def renamed(config: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The config with each alias under its proper name; transformers takes either."""
    clashes = [(alias, name) for alias, name in names.items() if alias in config and name in config]
    findings = [
        Finding(NOT_UNDERSTOOD, f"{one_of((alias, name))} are two names of one key", (alias,), "keep one of them")
        for alias, name in clashes
        if config[alias] != config[name]
    ]
    if findings:
        raise DscError(findings)
    aliased = {names[key]: value for key, value in config.items() if key in names}
    return aliased | {key: value for key, value in config.items() if key not in names}
