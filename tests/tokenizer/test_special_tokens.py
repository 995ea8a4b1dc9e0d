"""Special tokens, wherever the files name them: ids, ends, texts and streams are those of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer
from tests import tokenizers_made_here as made

TOKENS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|new|>", "<tool>", "<|extra|>", "<image>"]
TEXTS = ["a man<|im_end|> of</s>\n", "<|new|> the<tool>a <|extra|>.", "<s><image> in <|im_start|>", "<|im_end|>"]


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


TOKEN = st.sampled_from(TOKENS)
FLAGS = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
AS_TABLE = TOKEN.map(lambda text: {**FLAGS, "content": text})
LISTED = st.lists(st.sampled_from(TOKENS[4:]), unique=True, max_size=3)
FILES = st.fixed_dictionaries(
    {
        "eos_token": maybe(TOKEN | AS_TABLE),
        "bos_token": maybe(TOKEN),
        "image_token": maybe(TOKEN),
        "additional_special_tokens": maybe(st.lists(TOKEN, unique=True, max_size=3)),
        "decoder": maybe(LISTED),
        "added_tokens": maybe(LISTED),
        "map": maybe(st.fixed_dictionaries({}, optional={"eos_token": TOKEN, "pad_token": TOKEN})),
        "emptied": st.booleans(),
    }
)


def write(base: Path, folder: Path, files: dict[str, Any]) -> None:
    """A folder like `base` whose special tokens are named in these places only."""
    content = json.loads((base / "tokenizer.json").read_text())
    n_tokens = len(content["model"]["vocab"])
    if files["emptied"]:
        content["added_tokens"] = []
        content["post_processor"] = None
    names = ("eos_token", "bos_token", "image_token", "additional_special_tokens")
    config = {name: files[name] for name in names if files[name] is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if files["decoder"] is not None:
        rows = {str(n_tokens + i): {"content": text, "special": i % 2 == 0} for i, text in enumerate(files["decoder"])}
        config["added_tokens_decoder"] = rows
    folder.mkdir(exist_ok=True)
    others = {"added_tokens.json": None, "special_tokens_map.json": files["map"], "tokenizer_config.json": config}
    if files["added_tokens"] is not None:
        others["added_tokens.json"] = {text: n_tokens + i for i, text in enumerate(files["added_tokens"])}
    for name, entry in {**others, "tokenizer.json": content}.items():
        (folder / name).unlink(missing_ok=True)
        if entry is not None:
            (folder / name).write_text(json.dumps(entry))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: made.MAKERS[name](tmp_path_factory.mktemp(name)) for name in ("byte_level", "byte_fallback", "unigram")
    }


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: Tokenizer(make(tmp_path_factory.mktemp(name))) for name, make in made.MAKERS.items()}


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=FILES)
def test_special_tokens_are_those_of_transformers(bases, tmp_path, kind, files):
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "tokenizer"
    write(bases[kind], folder, files)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), Tokenizer(folder)
    assert len(ours) == len(theirs)
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_token_id, theirs.bos_token_id)
    assert {token: theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens} == {
        token: ours.token_to_id(token) for token in theirs.all_special_tokens
    }
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode_ids(text, bos=False) == ids
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == expected
            stream = ours.stream(skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == expected


# -------------------------------------------------------------------------------------------- text that looks like one

PIECES = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "</s>", "<unk>", "a man", " of", "\n", "<", "s>", "\ufdd0", "é"]
)


def squeezed(text: str) -> str:
    """Without white space, which sentencepiece drops at the beginning of a text."""
    return "".join(text.split())


USERS = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.parametrize("kind", made.MAKERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(user=USERS)
def test_a_protected_text_has_no_special_token_and_all_its_characters(tokenizers, kind, user):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode_ids(tokenizer.protect(user), bos=False, protected=True)
    unknown = {"<unk>"} if kind == "unigram" else set()  # which stands for characters there
    assert not {tokenizer.token_to_id(text) for text in tokenizer.special_tokens - unknown} & set(ids)
    if kind != "unigram":  # which has no token for some characters
        assert squeezed(tokenizer.decode(ids, skip_special_tokens=False)) == squeezed(user)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "sentencepiece"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=USERS, user=USERS, after=USERS)
def test_what_stands_around_a_protected_text_keeps_its_special_tokens(tokenizers, kind, before, user, after):
    tokenizer = tokenizers[kind]
    before, after = before.replace("\ufdd0", ""), after.replace("\ufdd0", "")
    end = tokenizer.decode([tokenizer.eos_id], False)
    marked = before + end + tokenizer.protect(user) + end + after
    ids = tokenizer.encode_ids(marked, bos=False, protected=True)
    first, last = (tokenizer.encode_ids(text, bos=False) for text in (before + end, end + after))
    assert ids[: len(first)] == first and ids[len(ids) - len(last) :] == last
    middle = ids[len(first) : len(ids) - len(last)]
    assert squeezed(tokenizer.decode(middle, skip_special_tokens=False)) == squeezed(user)
    if "<" not in user and "\ufdd0" not in user:
        assert ids == tokenizer.encode_ids(marked, bos=False)


def test_marks_of_text_ask_no_token_of_a_vocabulary_that_lacks_characters(tmp_path: Path) -> None:
    processor = char_tokenizer("Hi <s>?")
    processor.add_special_tokens(["<s>"])
    save_tokenizer(processor, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    texts = [tokenizer.protect(text) for text in ("Hi <s>?", "Hi?")]
    for (ids, places), text in zip(tokenizer.encode_protected(texts), ("Hi <s>?", "Hi?"), strict=True):
        assert tokenizer.decode(ids) == text and places is not None and len(places) == len(text)
    assert tokenizer.encode_ids("<s>") != tokenizer.encode_ids(tokenizer.protect("<s>"), protected=True)
    with pytest.raises(LitGPTError, match="has no token for the character 'x'"):
        tokenizer.encode_protected([tokenizer.protect("<s>x")])
