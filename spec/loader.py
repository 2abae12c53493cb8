"""A spec file -> ModelSpec, or a DscError with everything that is wrong in it.

The steps, each of which sees only what the previous one accepted: text, yaml, validate, checks. Where the schema
refuses some values, checks still see the rest.
"""

import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dsc.spec.base import Section
from dsc.spec.checks import check
from dsc.spec.cluster import Cluster, is_file
from dsc.spec.errors import DscError, Finding, Position
from dsc.spec.foreign import refuse_foreign
from dsc.spec.model import ModelSpec
from dsc.spec.partial import readable_part
from dsc.spec.text import MAX_BYTES, decode
from dsc.spec.validate import validate
from dsc.spec.words import nearest, shown
from dsc.spec.yaml import read
from dsc.spec.zoo import MODELS, names, path_of

S = TypeVar("S", bound=Section)


def load(source: str | Path) -> ModelSpec:
    """The spec at a path or of that name in the zoo. A file takes precedence over a name, a name over a folder."""
    path = _path(source)
    try:
        data = _read_file(path)
    except FileNotFoundError:
        raise _unreadable(source, "no such file, and no model of the zoo", _suggestion(source)) from None
    except (OSError, ValueError) as error:  # ValueError: a path that holds a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unreadable(source, reason.lower(), "name a file that can be read, or a model of the zoo") from None
    return loads(data, str(path))


def located(findings: Iterable[Finding], source: str | Path, text: bytes | None = None) -> list[Finding]:
    """What is wrong with a spec that loads, at its keys; `text` where that was not in a file but is called `source`."""
    path = _path(source) if text is None else Path(source)
    document = read(decode(_read_file(path) if text is None else text, str(path)), str(path))
    return [replace(one, position=one.position or document.position(one.key)) for one in findings]


def position_of(source: str, key: str) -> Position:
    """Where the file of a spec that loads has a key, such as "layers[0].repeat", or else the section around it."""
    path = _path(source)
    parts = re.findall(r"[^.\[\]]+", key)
    document = read(decode(_read_file(path), str(path)), str(path))
    return document.position(tuple(int(part) if part.isdigit() else part for part in parts))


def loads(text: str | bytes, file: str) -> ModelSpec:
    """The spec that a text holds; `file` is what findings call it."""
    refuse_foreign(text if isinstance(text, str) else text.decode("utf-8", "replace"), file)
    spec = load_section(ModelSpec, text, file, check)
    if spec.cluster is None or not is_file(spec.cluster.kind):
        return spec
    try:
        machine = load_machine(Path(file).parent / spec.cluster.kind)
    except OSError as error:
        position = read(decode(text, file), file).position(("cluster", "kind"))
        raise DscError([replace(_no_machine(spec.cluster.kind, error), position=position)]) from None
    named = spec.cluster.model_copy(update={"kind": machine.name, "machine": machine})
    return spec.model_copy(update={"cluster": named})


def load_machine(path: Path) -> Cluster:
    """A file like those of spec/clusters. Raises DscError for what is wrong in it, OSError where it cannot be read."""
    return load_section(Cluster, _read_file(path), str(path), lambda _: [])


def _no_machine(kind: str, error: OSError) -> Finding:
    reason = (error.strerror or str(error)).lower()
    help = "`dsc zoo h100` prints a file to begin with"
    return Finding("DSC065", f"the cluster of {shown(kind)} cannot be read: {reason}", ("cluster", "kind"), help)


def load_section(section: type[S], text: str | bytes, file: str, check: Callable[[S], list[Finding]]) -> S:
    """A file that holds any one section of the schema; `check` says what is wrong across keys that were read."""
    document = read(decode(text, file), file)
    value, wrong = validate(section, document)
    part = readable_part(section, document.root) if value is None else value
    if part is not None:
        wrong += check(part)
    findings = [*document.findings]
    for finding in wrong:
        if document.readable(finding.key):
            findings.append(replace(finding, position=document.position(finding.key)))
    if findings:
        raise DscError(sorted(findings, key=_place))
    assert value is not None
    return value


def _path(source: str | Path) -> Path:
    named = path_of(str(source), MODELS)
    return Path(source) if named is None or Path(source).is_file() else named


def _read_file(path: Path) -> bytes:
    """At most one byte more than a spec may have. Pipes and devices could block or never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError(0, "a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError(0, "not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _unreadable(source: str | Path, reason: str, help: str) -> DscError:
    message = f"cannot read {shown(str(source))}: {reason}"
    return DscError([Finding("DSC001", message, help=help, position=Position(str(source), 1, 1))])


def _suggestion(source: str | Path) -> str:
    close = nearest(Path(source).stem if str(source).endswith((".yaml", ".yml")) else str(source), names(MODELS))
    return "`dsc zoo` lists the models" if close is None else f"did you mean {close!r}?"


def _place(finding: Finding) -> tuple[int, int, str]:
    assert finding.position is not None
    return finding.position.line, finding.position.column, finding.code
