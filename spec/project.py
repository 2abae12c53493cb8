"""dsc.yaml: which specs of a repository compile to which folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dsc.spec.base import Section
from dsc.spec.errors import DscError, Finding, Position
from dsc.spec.loader import load_section
from dsc.spec.partial import until_unread
from dsc.spec.words import shown
from dsc.spec.zoo import MODELS, path_of

PROJECT = "dsc.yaml"


class Package(Section):
    spec: Annotated[str, Field(min_length=1)]
    """The path of a spec, from the folder of dsc.yaml, or the name of a model of the zoo."""
    output: Annotated[str, Field(min_length=1)]
    """The folder of its package, from the folder of dsc.yaml."""


class Project(Section):
    packages: Annotated[list[Package], Field(min_length=1)]
    """Specs and the folders that they compile to."""


def load_project() -> Project | None:
    """dsc.yaml of the working directory; None where there is none. Raises DscError with all that is wrong in it."""
    try:
        text = Path(PROJECT).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"cannot read {PROJECT!r}: {(error.strerror or str(error)).lower()}"
        raise DscError([Finding("DSC001", message, position=Position(PROJECT, 1, 1))]) from None
    return load_section(Project, text, PROJECT, _check)


def _check(project: Project) -> list[Finding]:
    return [finding for rule in (_missing, _shared) for finding in until_unread(rule(project))]


def _missing(project: Project) -> Iterator[Finding]:
    for index, package in enumerate(project.packages):
        if not Path(package.spec).is_file() and path_of(package.spec, MODELS) is None:
            message = f"cannot read {shown(package.spec)}: no such file, and no model of the zoo"
            help = f"write a path as seen from the folder of {PROJECT}; `dsc zoo` lists the models"
            yield Finding("DSC001", message, ("packages", index, "spec"), help)


def _shared(project: Project) -> Iterator[Finding]:
    """Folders are compared as they are once links are followed."""
    folders = [Path(package.output).resolve() for package in project.packages]
    for index, folder in enumerate(folders):
        for at, other in enumerate(folders[:index]):
            if not (folder.is_relative_to(other) or other.is_relative_to(folder)):
                continue
            message = (
                f"{shown(project.packages[index].output)} is the folder of packages[{at}], or inside it, or around it"
            )
            yield Finding("DSC044", message, ("packages", index, "output"), "give each package a folder of its own")
