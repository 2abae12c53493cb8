"""Streams give what decoding at once gives; stop strings stop at any split, and their beginnings never show."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving.packages import module
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

text = module("text")
SAMPLES = [
    "def f(x):\n    return x",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "a\U0001f469\u200d\U0001f680b",
    "na\u00efve \u00e9",
]


def byte_level() -> Tokenizer:
    """A byte-level BPE whose merges cut characters in the middle."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SAMPLES * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def metaspace() -> Tokenizer:
    """Words with their spaces in front, as sentencepiece has them; its decoder drops the first one."""
    words = ["\u2581the", "\u2581cat", "s", "\u2581sat", ".", "\u2581"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


CODECS = {
    "bytes": (text.ByteCodec(), 256),
    "byte-level": (text.TokenizerCodec(byte_level()), 330),
    "metaspace": (text.TokenizerCodec(metaspace()), 6),
}


def streamed(codec: object, tokens: list[int]) -> str:
    stream = codec.stream()  # type: ignore[attr-defined]
    return "".join([stream.feed(token) for token in tokens]) + stream.flush()


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_a_stream_is_what_decoding_at_once_gives(name: str, data: st.DataObject) -> None:
    codec, vocabulary = CODECS[name]
    tokens = data.draw(st.lists(st.integers(0, vocabulary - 1), max_size=24))
    assert streamed(codec, tokens) == codec.decode(tokens)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", ["bytes", "byte-level"])
def test_text_comes_whole(name: str, sample: str) -> None:
    codec, _ = CODECS[name]
    tokens = codec.encode(sample)
    assert streamed(codec, tokens) == sample
    stream = codec.stream()
    assert not any("\ufffd" in stream.feed(token) for token in tokens)


def test_half_a_character_shows_at_the_end() -> None:
    codec, _ = CODECS["byte-level"]
    tokens = codec.encode("\u9f98")[:1]
    stream = codec.stream()
    assert stream.feed(tokens[0]) == "" and "\ufffd" in stream.flush()


STOPS = ("\n\n", "END", "ENDING", "abab")


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_stops_at_every_split(stop: str) -> None:
    whole = f"one EN\n aba {stop} never shown".encode()
    before = whole.decode().split("\n\n")[0] if stop == "\n\n" else whole.decode().split(stop)[0]
    for first, second in itertools.combinations(range(len(whole) + 1), 2):
        writer = text.Writer(text.ByteStream(), [stop])
        parts = (whole[:first], whole[first:second], whole[second:])
        shown = [writer.write(list(part)) for part in parts]
        assert "".join(shown) + writer.finish() == before and writer.stopped
        assert all(before.startswith("".join(shown[: n + 1])) for n in range(3)), "a beginning of the stop showed"


@given(pieces=st.lists(st.text("aEND\n", max_size=6), max_size=8))
def test_what_shows_is_the_text_before_the_first_stop(pieces: list[str]) -> None:
    writer = text.Writer(text.ByteStream(), STOPS)
    shown = "".join(writer.write(list(piece.encode())) for piece in pieces) + writer.finish()
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in STOPS if stop in whole]
    assert writer.stopped == bool(ends)
    # Of two stops that end apart, the one that is complete first counts.
    assert shown in {whole[:end] for end in ends} if ends else shown == whole


def test_what_looked_like_a_stop_shows_in_the_end() -> None:
    writer = text.Writer(text.ByteStream(), ["END"])
    assert writer.write(list(b"the EN")) == "the " and writer.finish() == "EN" and not writer.stopped
