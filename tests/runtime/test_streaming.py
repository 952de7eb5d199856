"""Text as it grows: never half a character, and stop strings wherever token borders fall."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mla_runtime.errors import InputError
from mla_runtime.streaming import Detokenizer, StopStrings

# A byte-level tokenizer: ids 0 to 255 are single bytes, later ones hold several, some cut characters.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_names() -> dict[int, str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in plain}
    for extra, byte in enumerate(b for b in range(256) if b not in names):
        names[byte] = chr(256 + extra)
    return names


NAMES = _byte_names()
CUT = ["😀".encode()[:2], "😀".encode()[2:], b"\xe4\xb8", b"a\xf0"]
MERGED = [b"def", b" def", "中".encode(), "é".encode(), *CUT]
PIECES = [bytes([b]) for b in range(256)] + MERGED
VOCAB = {"".join(NAMES[b] for b in piece): i for i, piece in enumerate(PIECES)}


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=VOCAB, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = make_tokenizer()
IDS_OF = {piece: i for i, piece in enumerate(PIECES)}
some_ids = st.lists(st.integers(0, len(PIECES) - 1), max_size=40)
# long runs that never become characters, and the bytes of real ones
noise = st.lists(st.sampled_from([0xFF, 0x80, 0xF0, 0x9F, 0x98, 0xE4, 0x41, 258, 260, 261]), max_size=60)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))


def test_the_alphabet_is_that_of_byte_level_tokenizers() -> None:
    assert sorted(NAMES.values()) == ALPHABET


@given(some_ids | noise)
def test_pieces_join_to_the_text_of_all_ids(ids: list[int]) -> None:
    words = Detokenizer(decode)
    pieces = [words.push(i) for i in ids]
    assert "".join(pieces) + words.flush() == decode(ids)


@given(st.text(max_size=30))
def test_real_text_never_shows_a_broken_character(text: str) -> None:
    words = Detokenizer(decode)
    shown = ""
    for byte in text.encode():
        shown += words.push(byte)
        assert text.startswith(shown)
    assert shown + words.flush() == text


def test_a_character_comes_with_its_last_byte() -> None:
    words = Detokenizer(decode)
    assert [words.push(b) for b in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    words = Detokenizer(decode)
    shown = sum(len(words.push(0xFF)) for _ in range(100))
    assert shown >= 90


@given(some_ids, some_ids)
def test_text_behind_a_context_does_not_repeat_it(context: list[int], ids: list[int]) -> None:
    context = [*context, 0x41]  # a prompt ends with a whole character
    words = Detokenizer(decode, context)
    assert (
        "".join(words.push(i) for i in ids) + words.flush() == decode(context + ids)[len(decode(context)) :]
    )


def test_a_leading_space_that_a_decoder_strips_is_kept_behind_a_context() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    tokenizer.decoder = decoders.Metaspace()

    def words_of(ids: list[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    assert words_of([0, 1]) == "a b"
    words = Detokenizer(words_of, [0])
    assert [words.push(1), words.push(0)] == [" b", " a"]


texts = st.text(alphabet="ab.", max_size=24)
stop_lists = st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3)


def through(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    shown = ""
    for piece in pieces:
        more, met = matcher.push(piece)
        shown += more
        if met:
            return shown, True
    return shown + matcher.flush(), False


@given(texts, stop_lists, st.lists(st.integers(0, 24), max_size=6))
def test_token_borders_change_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert through(stops, pieces) == through(stops, list(text))


@given(texts, stop_lists)
def test_text_is_shown_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    shown, met = through(stops, list(text))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert met == bool(ends)
    assert text.startswith(shown)
    if met:
        assert any(text[len(shown) : min(ends)] == stop for stop in stops)
    else:
        assert shown == text


@given(texts, stop_lists)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for piece in text:
        more, met = matcher.push(piece)
        shown += more
        if met:
            return
    held = text[len(shown) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="stop string is empty"):
        StopStrings(["a", ""])
