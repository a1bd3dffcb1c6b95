from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ddpm.text.tokenizer import FIRST_MERGE, Tokenizer, learn, normalized

CAPTIONS = ["red heart", "blue heart", "strawberry", "straw hat", "blueberry", "face with tears of joy", "red, red"]
LEARNED = learn(CAPTIONS, 1000)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_merges_are_the_most_frequent_pairs() -> None:
    """By hand: in "aaabab aaab", " aaabab" and " aaab", the pair (a, b) occurs 3 times, (a, a) 4 times; then (aa, a)
    and (a, b) twice each, of which (a, b) has the smaller ids."""
    a, b = ord("a") + 1, ord("b") + 1
    assert learn(["aaabab aaab"], 1).merges == ((a, a),)
    assert learn(["aaabab aaab"], 2).merges[1] == (a, b)


def test_frequent_words_are_one_token_and_rare_ones_are_made_of_known_pieces() -> None:
    assert pieces(LEARNED, "red heart") == ["red", "heart"]
    assert pieces(LEARNED, "strawberry")[0] == "straw"
    assert b"".join(piece.encode() for piece in pieces(LEARNED, "strawberry")) == b"strawberry"


def test_no_pair_that_occurs_once_is_merged() -> None:
    assert learn(["abcdefg"], 1000).merges == ()


def test_equal_texts_make_equal_tokenizers() -> None:
    assert learn(CAPTIONS[::-1], 1000) == LEARNED


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_normalized(text: str) -> None:
    ids = LEARNED.encode(text)
    assert LEARNED.decode(ids) == normalized(text)
    assert all(1 <= token < LEARNED.vocabulary for token in ids)


def test_unknown_signs_and_lone_surrogates_are_encodable() -> None:
    assert LEARNED.decode(LEARNED.encode("Zebra \u2708\ufe0f 日本 🍓")) == "zebra \u2708\ufe0f 日本 🍓"
    assert LEARNED.decode(LEARNED.encode("a\ud800")) == "a?"


def test_spelling_case_and_spaces_are_one_text() -> None:
    assert LEARNED.encode("  Red\tHEART ") == LEARNED.encode("red heart")
    assert LEARNED.encode("ﬁsh") == LEARNED.encode("fish")  # a ligature


def test_a_blank_text_has_no_ids_and_padding_no_text() -> None:
    assert LEARNED.encode(" \n") == []
    assert LEARNED.decode([*LEARNED.encode("red"), 0, 0]) == "red"


def test_ids_of_merges_follow_those_of_bytes() -> None:
    assert LEARNED.vocabulary == FIRST_MERGE + len(LEARNED.merges)
    assert learn(CAPTIONS, 3).vocabulary == FIRST_MERGE + 3
