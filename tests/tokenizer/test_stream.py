"""Streams of tokens: joined, the texts are what decoding everything at once gives, whatever the ids."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer
from tests import tokenizers_made_here as made

TEXTS = st.lists(
    st.sampled_from(
        ["a man", " must", "😀", "👩‍👩‍👧", "日本", "é", "\n", "  ", " ", "▁", "�", ".", "<s>", "</s>", "<|im_end|>"]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)
PROPERTY = settings(max_examples=130, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=made.MAKERS)
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return Tokenizer(made.MAKERS[request.param](tmp_path_factory.mktemp(request.param)))


def streamed(tokenizer: Tokenizer, ids: Sequence[int], skip: bool) -> list[str]:
    decoder = tokenizer.stream(skip)
    return [*(decoder.push(index) for index in ids), decoder.flush()]


@PROPERTY
@given(text=TEXTS, skip=st.booleans())
def test_any_text_streams_as_it_decodes(tokenizer, text, skip):
    text = text.encode("utf-8", "ignore").decode()
    ids = tokenizer.encode_ids(text)
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@PROPERTY
@given(data=st.data(), skip=st.booleans())
def test_any_ids_stream_as_they_decode(tokenizer, data, skip):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=25))
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@PROPERTY
@given(text=TEXTS, skip=st.booleans())
def test_the_bytes_of_the_tokens_are_the_text(tokenizer, text, skip):
    """Each by itself as it stands in the middle, so that a leading space that a text's beginning drops is there."""
    ids = tokenizer.encode_ids("a man " + text.encode("utf-8", "ignore").decode())
    whole = b"".join(tokenizer.token_bytes(index, skip) for index in ids).decode()
    assert whole.removeprefix(" ") == tokenizer.decode(ids, skip).removeprefix(" ")


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "sentencepiece"])
def test_no_text_holds_half_a_character(tmp_path, kind):
    tokenizer = Tokenizer(made.MAKERS[kind](tmp_path))
    texts = streamed(tokenizer, tokenizer.encode_ids("a 😀 man 日本 é"), True)
    assert all("�" not in text for text in texts)
    assert len([text for text in texts if text]) >= 6


@pytest.mark.parametrize("kind", ["byte_fallback", "sentencepiece"])
def test_spaces_between_words_are_there(tmp_path, kind):
    """LitGPT's `chat` prints Mistral's words without them."""
    tokenizer = Tokenizer(made.MAKERS[kind](tmp_path))
    ids = tokenizer.encode("it is a truth")
    assert "".join(tokenizer.decode_stream(iter(ids))) == "it is a truth"


def test_a_stream_of_tensors_or_ids(tokenizer):
    ids = tokenizer.encode("a good fortune", bos=False)
    assert "".join(tokenizer.decode_stream([ids[:2], ids[2:]])) == "a good fortune"
    assert "".join(tokenizer.decode_stream(ids.tolist())) == "a good fortune"


def test_after_a_flush_a_new_text_begins(tokenizer):
    decoder = tokenizer.stream()
    for _ in range(2):
        ids = tokenizer.encode_ids("a man")
        assert "".join(decoder.push(index) for index in ids) + decoder.flush() == "a man"


def test_without_letters_streams_still_decode(tmp_path):
    save_tokenizer(char_tokenizer(" .,\n"), tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert streamed(tokenizer, tokenizer.encode_ids(". ,\n"), True) == [".", " ", ",", "\n", ""]


@pytest.mark.parametrize("text", ["a man ", "�", "é"])
def test_a_long_stream_takes_time_in_proportion(tokenizer, text):
    """Decoding everything again for each token would take a hundred times as long for ten times the tokens."""

    def seconds(times: int) -> float:
        ids = tokenizer.encode_ids(text * times)
        start = time.process_time()
        streamed(tokenizer, ids, True)
        return time.process_time() - start

    seconds(50)
    assert seconds(3000) < 40 * max(seconds(300), 1e-3)
