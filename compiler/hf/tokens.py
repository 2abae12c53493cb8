"""Special tokens: bos_token_id, eos_token_id, pad_token_id, in config.json and generation_config.json."""

from collections.abc import Mapping

from dsc.compiler.hf.reader import ConfigReader
from dsc.spec.tokens import Tokens

KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_tokens(config: ConfigReader, defaults: Mapping[str, int]) -> dict[str, object]:
    """The spec's tokens, without those that are null or cannot occur: older configs say -1 for none."""
    tokens: dict[str, object] = {}
    vocab_size = config.integer("vocab_size")
    for key in KEYS:
        ids = config.token_ids(key, defaults.get(key))
        inside = [token for token in ids if 0 <= token < vocab_size]
        if inside != ids:
            config.notes.append(
                f"Left out: {key} {ids}, of which not all are in the vocabulary of {vocab_size} tokens."
            )
        if inside:
            tokens[key.removesuffix("_token_id")] = inside if len(inside) > 1 else inside[0]
    return tokens


def write_tokens(tokens: Tokens) -> dict[str, object]:
    """All three keys: left out, transformers would make some up."""
    eos = tokens.eos[0] if tokens.eos is not None and len(tokens.eos) == 1 else tokens.eos
    return dict(zip(KEYS, (tokens.bos, eos, tokens.pad), strict=True))
