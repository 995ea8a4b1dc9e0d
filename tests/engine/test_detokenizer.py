"""Answers as text: stop strings that span tokens, characters that span tokens, and token-level stops with overlaps."""

from __future__ import annotations

import pytest

from litgpt.engine.detokenizer import TextStream
from litgpt.engine.engine import Engine
from litgpt.engine.request import StopMatcher
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.tokenizer.stream import ByteStream
from tests.engine.oracle import tiny_model


def reply(stop_strings: tuple[str, ...] = ()) -> TextStream:
    """Of a request that never runs; its tokens are bytes."""
    request = Engine(tiny_model()).submit([1], Sampling(temperature=0))
    return TextStream(request, ByteStream(lambda token: bytes([token])), stop_strings)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("Hello there", (), "Hello there"),
        ("Hello there", ("o t",), "Hell"),
        ("aab", ("ab",), "a"),
        ("aaab more", ("aab",), "a"),
        ("one END two END", ("END",), "one "),
        ("x</s>y", ("</", "</s>"), "x"),
        ("x<y</s>", ("</s>",), "x<y"),
        ("ends in </", ("</s>",), "ends in </"),
        ("grüße", ("ß",), "grü"),
        ("", ("x",), ""),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 100])
def test_text_is_cut_before_the_first_stop_string(text, stops, expected, step):
    answer, seen = reply(stops), ""
    tokens = list(text.encode())
    for at in range(0, len(tokens), step):
        seen += answer.push(tokens[at : at + step])
        assert expected.startswith(seen) and "\ufffd" not in seen
    assert seen + answer.close() == expected
    stopped = expected != text
    assert answer.finish_reason == ("stop" if stopped else None)
    assert answer.request.done == stopped  # the engine need not go on


def test_iterating_ends_at_the_stop_string():
    model = tiny_model()
    whole = bytes(Engine(model).submit([1], Sampling(temperature=0), max_new_tokens=20).result()).decode()
    request = Engine(model).submit([1], Sampling(temperature=0), max_new_tokens=20)
    answer = TextStream(request, ByteStream(lambda token: bytes([token])), [whole[8:11]])
    assert "".join(answer) == whole[: whole.index(whole[8:11])]
    assert answer.finish_reason == "stop"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(LitGPTError, match="empty"):
        reply(("",))


@pytest.mark.parametrize(
    ("stops", "tokens", "kept"),
    [
        ([[7, 8]], [7, 7, 8], [7]),
        ([[7, 7, 8]], [7, 7, 7, 8], [7]),
        ([[1, 2, 3], [2]], [1, 2], [1]),
        ([[1, 2, 3], 9], [1, 2, 9], [1, 2]),
        ([[5, 6], [4, 5, 6]], [4, 5, 6], []),
    ],
)
def test_overlapping_stop_sequences(stops, tokens, kept):
    matcher, output = StopMatcher(stops), []
    for i, token in enumerate(tokens):
        output.append(token)
        assert bool(matcher.matched(output)) == (i == len(tokens) - 1)
    assert output[: len(output) - matcher.matched(output)] == kept


def test_only_what_may_begin_a_stop_sequence_is_held():
    matcher = StopMatcher([[7, 7, 8], [9]])
    assert [matcher.partial_match(tokens) for tokens in ([1], [7], [7, 7], [7, 7, 7], [7, 1])] == [0, 1, 2, 2, 0]
