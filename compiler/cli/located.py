"""Where in its file a spec is wrong, of what is found wrong after it was read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pins_located(source: str) -> Iterator[None]:
    """Pins that nothing keeps to are told of at their place in the spec, as every verb does."""
    from dsc.spec.errors import DscError
    from dsc.spec.loader import located

    try:
        yield
    except DscError as error:
        pins = all(one.code == "DSC070" for one in error.findings)
        raise DscError(located(error.findings, source)) if pins else error from None
