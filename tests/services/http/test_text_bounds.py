"""What cannot fit is known without tokens; what fits is never refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.actors.text.chat import encode_answered
from rayward.cluster.types import Message
from rayward.services.http.text_bounds import TextBounds
from tests.tiny import tiny_tokenizer, wordpiece_tokenizer

TOKENIZER = tiny_tokenizer()
ROOM = 16
PIECES = st.sampled_from(["<eos>", "<user>", "<assistant>", "<e<eos>os>", "a", "<eo", " "])
TEXTS = st.lists(st.lists(PIECES, max_size=30).map("".join), min_size=2, max_size=4)


def tokens(texts: list[str]) -> list[int]:
    """Of a conversation, without what the template adds."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    *asked, response = texts
    return encode_answered(tokenizer, [Message("user", one) for one in asked], response, True)


@settings(max_examples=100)
@given(texts=TEXTS)
def test_what_fits_is_left_as_it_is(texts: list[str]) -> None:
    bounds = TextBounds(TOKENIZER, ROOM)
    if len(tokens(texts)) <= ROOM:
        assert bounds.excess(texts) is None
        assert bounds.cut(texts, "left") == bounds.cut(texts, "right") == texts


@settings(max_examples=100)
@given(texts=TEXTS)
def test_what_is_taken_off_would_have_been_cut_off_anyway(texts: list[str]) -> None:
    bounds = TextBounds(TOKENIZER, ROOM)
    long = [one * 200 for one in texts]
    ids = tokens(long)
    for side in ("left", "right"):
        short = bounds.cut(long, side)
        assert len(short) == len(long)
        kept = tokens(short)
        # A name that was cut in two leaves letters behind, none of them within the room.
        if side == "left":
            assert kept[-ROOM:] == ids[-ROOM:]
        else:
            assert kept[:ROOM] == ids[:ROOM]
        assert sum(map(len, short)) <= 128 * ROOM
        assert bounds.excess(short) is None


@pytest.mark.parametrize(
    ("texts", "excess"),
    [
        (["a" * 128 * ROOM], None),
        (["a" * 128 * ROOM, "b"], "2049 characters"),
        (["<eos>" * 10, "<user>" * 6], None),
        (["<eos>" * 10, "<user>" * 7], "17 names of special tokens"),
        # No more of them than need be are counted.
        (["<eos>" * 300], "17 names of special tokens"),
        # As BERT's, whose tokens are short, with much white space.
        ([" " * 100 * ROOM], None),
    ],
)
def test_what_is_too_much_is_said(texts: list[str], excess: str | None) -> None:
    for tokenizer in (tiny_tokenizer(), wordpiece_tokenizer()):
        if tokenizer.eos_token is not None or "<eos>" not in texts[0]:
            assert TextBounds(tokenizer, ROOM).excess(texts) == excess


def test_without_a_known_room_everything_may_fit() -> None:
    bounds = TextBounds(TOKENIZER, None)
    texts = ["<eos>" * 10_000, "a" * 1_000_000]
    assert bounds.excess(texts) is None
    assert bounds.cut(texts, "left") == texts
