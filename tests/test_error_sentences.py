"""What sentences hold of values from outside: little of it, on one line, in no time."""

from __future__ import annotations

import tracemalloc
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt.errors import MAX_QUOTED, MAX_SENTENCE, LitGPTError, UsageError, closest, one_line, quoted

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner) | st.tuples(inner, inner),
    max_leaves=12,
)
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_a_value_is_quoted_short_and_on_one_line(value):
    said = quoted(value)
    assert len(said) <= MAX_QUOTED and said.isprintable()


@pytest.mark.parametrize(
    "value",
    [
        yaml.safe_load(ALIASES),
        "x" * 10**7,
        [[0] * 10**6] * 10,
        10**100_000,
        {"k" * 10**6: "v" * 10**6},
        Broken(),
        ["\x1b[2J"] * 300,
    ],
    ids=["aliases", "text", "list", "number", "mapping", "broken", "control"],
)
def test_a_large_value_is_quoted_at_once(value):
    tracemalloc.start()
    said = quoted(value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < len(said) <= MAX_QUOTED and "\x1b" not in said
    assert peak < 200_000


@pytest.mark.parametrize(
    ("value", "said"),
    [("it's", '"it\'s"'), ({"a": [1, None]}, "{'a': [1, None]}"), (0.1, "0.1"), (b"\x00", r"b'\x00'"), ([], "[]")],
)
def test_a_small_value_is_quoted_as_python_writes_it(value: Any, said: str):
    assert quoted(value) == said


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text(min_size=1))
def test_a_sentence_is_one_line_whatever_stands_in_it(name, piece):
    for error in (LitGPTError(f"There is no {name}."), UsageError(f"Bad {piece * 3000}")):
        assert str(error).isprintable() and len(str(error)) <= MAX_SENTENCE
    assert one_line(ValueError(name)).isprintable()


def test_a_word_that_is_far_too_long_is_cut_in_its_middle():
    path = PurePosixPath("/data", *["folder"] * 100, "model.safetensors")
    said = str(LitGPTError(f"{path} can't be read (is a directory); choose a file."))
    assert said.startswith("/data/folder/") and "…" in said
    assert said.endswith("/model.safetensors can't be read (is a directory); choose a file.")
    assert str(LitGPTError("A sentence. " * 20)) == "A sentence. " * 20


def test_the_closest_of_a_text_without_end_takes_no_time():
    assert closest("temperatur" * 10**6, ["temperature"]) == ""
