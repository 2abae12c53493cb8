"""Where in its file a spec is wrong, of what is found wrong after it was read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsc.spec.model import ModelSpec


@contextmanager
def pins_located(source: str, spec: ModelSpec) -> Iterator[None]:
    """Pins that nothing keeps to are told of at their place in the spec, where they are the spec's."""
    from dsc.spec.errors import DscError
    from dsc.spec.loader import located

    try:
        yield
    except DscError as error:
        if any(one.code != "DSC070" or getattr(spec, str(one.key[0])) is None for one in error.findings):
            raise
        raise DscError(located(error.findings, source)) from None
