"""Bytes -> the text of a spec: small, UTF-8, without characters that an editor does not show."""

import re

from dsc.spec.errors import Code, DscError, Finding, Position

MAX_BYTES = 256 * 1024  # the largest spec of the zoo has a few thousand
MAX_LINE = 4096  # the YAML parser takes quadratic time over some long tokens

LINE_BREAK = re.compile("\r\n|\r|\n")

# Controls, further line separators (lines would be counted differently from editors), what reorders the text on screen
# (bidirectional overrides), halves of surrogate pairs and byte order marks.
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def decode(source: bytes | str, file: str) -> str:
    """The text, or a DscError. A byte order mark of UTF-8 is dropped."""
    if len(source) > MAX_BYTES:
        raise _error("DSC004", f"the file is larger than {MAX_BYTES // 1024} KiB", "a spec is a small mapping", file)
    text = _utf8(source, file) if isinstance(source, bytes) else source
    text = text.removeprefix("\ufeff")
    if hidden := HIDDEN.search(text):
        message = f"the character U+{ord(hidden.group()):04X} is invisible or no text"
        raise _error("DSC002", message, "remove it", file, text[: hidden.start()])
    _refuse_long_lines(text, file)
    return text


def _utf8(source: bytes, file: str) -> str:
    if source.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _error("DSC002", "the file is UTF-16", "save it as UTF-8", file)
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError as error:
        before = source[: error.start].decode("utf-8")
        message = f"the byte 0x{source[error.start]:02X} is not UTF-8"
        raise _error("DSC002", message, "save the file as UTF-8", file, before) from None


def _refuse_long_lines(text: str, file: str) -> None:
    for number, line in enumerate(LINE_BREAK.split(text), start=1):
        if len(line) > MAX_LINE:
            message = f"the line has {len(line)} characters, more than {MAX_LINE}"
            finding = Finding("DSC004", message, help="break it", position=Position(file, number, 1))
            raise DscError([finding])


def _error(code: Code, message: str, help: str, file: str, before: str = "") -> DscError:
    """An error at the end of the text `before` it."""
    lines = LINE_BREAK.split(before)
    position = Position(file, len(lines), len(lines[-1]) + 1)
    return DscError([Finding(code, message, help=help, position=position)])
