"""Special tokens: bos_token_id, eos_token_id, pad_token_id, in config.json and generation_config.json."""

from collections.abc import Mapping

from dsc.compiler.hf.reader import ConfigReader
from dsc.spec.tokens import Tokens

KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_tokens(config: ConfigReader, defaults: Mapping[str, int]) -> dict[str, object]:
    """The spec's tokens, nothing of those that are null. -1 is how older configs say that there is no such token."""
    tokens = {key.removesuffix("_token_id"): config.token_ids(key, defaults.get(key)) for key in KEYS}
    return {name: ids for name, ids in tokens.items() if ids not in (None, -1)}


def write_tokens(tokens: Tokens) -> dict[str, object]:
    """All three keys: left out, transformers would make some up."""
    eos = tokens.eos[0] if tokens.eos is not None and len(tokens.eos) == 1 else tokens.eos
    return dict(zip(KEYS, (tokens.bos, eos, tokens.pad), strict=True))
