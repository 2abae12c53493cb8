"""The language model inside a config of several models: the text_config of a vision wrapper."""

from collections.abc import Mapping
from dataclasses import dataclass

from dsc.compiler.hf.model_types import MODEL_TYPES
from dsc.compiler.hf.reader import NOT_UNDERSTOOD
from dsc.compiler.hf.tokens import KEYS
from dsc.spec.errors import DscError, Finding
from dsc.spec.words import shown

TEXT = "text_config"
_DEFAULT_TYPES = {"kimi_k25": "deepseek_v3"}  # of a text_config that does not say its own
# What a wrapper may say for its language model. The second group means the same at both places, or nothing certain.
_INHERITED = ("dtype", "torch_dtype", *KEYS)
_AGREED = ("tie_word_embeddings", "quantization_config")
_BOOKKEEPING = ("architectures", "auto_map", "model_type", "transformers_version", "_name_or_path", TEXT)


@dataclass(frozen=True)
class LanguageModel:
    config: Mapping[str, object]
    key: tuple[str, ...] = ()
    """Where it stands in the file."""
    wrapper: str = ""
    left_out: tuple[str, ...] = ()
    """The other keys of the wrapper."""


def language_model(config: Mapping[str, object]) -> LanguageModel:
    """The config itself, unless its type is unknown and it holds another. Raises a DscError where the two disagree."""
    wrapper, inner = config.get("model_type"), config.get(TEXT)
    if not isinstance(wrapper, str) or wrapper in MODEL_TYPES or not isinstance(inner, dict):
        return LanguageModel(config)
    findings = [
        Finding(NOT_UNDERSTOOD, f"{key} is {shown(config[key])}, and {shown(inner[key])} in {TEXT}", (key,))
        for key in _AGREED
        if key in config and key in inner and config[key] != inner[key]
    ]
    if findings:
        raise DscError(findings)
    inherited = {key: config[key] for key in (*_INHERITED, *_AGREED) if key in config}
    default = {"model_type": _DEFAULT_TYPES[wrapper]} if wrapper in _DEFAULT_TYPES else {}
    left_out = tuple(sorted(config.keys() - {*_INHERITED, *_AGREED, *_BOOKKEEPING}))
    return LanguageModel({**default, **inherited, **inner}, (TEXT,), wrapper, left_out)
