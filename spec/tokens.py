"""Ids with a meaning of their own: what generation starts from, ends at and fills up with."""

from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from dsc.spec.base import Section

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _as_list(value: object) -> object:
    return value if isinstance(value, list) or value is None else [value]


TokenIds = Annotated[
    list[TokenId],
    Field(min_length=1, max_length=64),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_ID, {"type": "array", "items": _ID, "minItems": 1, "maxItems": 64}]}),
]


Mark = Annotated[str, Field(min_length=1, max_length=64)]


class Reasoning(Section):
    """What stands around the reasoning in an answer, as text; DeepSeek-R1 has <think> and </think>."""

    begin: Mark
    """Before it. The prompt may end with it already: then the answer begins inside."""
    end: Mark
    """Behind it; the answer proper follows."""


class Tokens(Section):
    """Special tokens of the vocabulary; null where a tokenizer has none."""

    bos: TokenId | None = None
    """Begins a text."""
    eos: TokenIds | None = None
    """Ends a text: generation stops there. One id or a list of them."""
    pad: TokenId | None = None
    """Fills up shorter sequences of a batch."""
    reasoning: Reasoning | None = None
    """Sets reasoning apart: the server answers it as reasoning_content; null: an answer is one text."""

    def ids(self) -> dict[str, int]:
        """Each id by the name of its key: bos, eos[0], eos[1], ..., pad."""
        several = {f"eos[{index}]": token for index, token in enumerate(self.eos or [])}
        named = {"bos": self.bos, **several, "pad": self.pad}
        return {name: token for name, token in named.items() if token is not None}
