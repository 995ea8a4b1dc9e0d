"""Answers that keep to a grammar, whatever a random model would rather say."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer
from tests import tokenizers_made_here
from tests.engine.oracle import naive, tiny_model
from tests.generate.folder import make_folder

pytest.importorskip("llguidance")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory) -> InferenceModel:
    return InferenceModel.load(make_folder(tmp_path_factory.mktemp("tiny") / "model"), precision="32-true")


def answer(inference_model: InferenceModel, grammar: Grammar, n: int = 100, **settings) -> tuple[str, str | None]:
    engine = inference_model.engine(1)
    reply = inference_model.reply(engine, [5, 6], Sampling(grammar=grammar, **settings), n)
    return "".join(reply), reply.finish_reason


@pytest.mark.parametrize(
    "settings", [dict(temperature=0), dict(seed=1), dict(seed=2, top_k=5), dict(seed=3, top_p=0.5)]
)
def test_an_answer_matches_its_regular_expression_as_a_whole(inference_model, settings):
    pattern = r"(yes|no), [a-f]{3} \d{2}!"
    text, reason = answer(inference_model, Grammar.regex(pattern, inference_model.tokenizer), **settings)
    assert re.fullmatch(pattern, text) and reason == "stop"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("as_text", [False, True])
def test_an_answer_is_what_its_schema_describes(inference_model, seed, as_text):
    schema = json.dumps(PERSON) if as_text else PERSON
    text, reason = answer(inference_model, Grammar.json_schema(schema, inference_model.tokenizer), seed=seed)
    person = json.loads(text)
    assert reason == "stop" and set(person) == {"name", "age"}
    assert len(person["name"]) <= 6 and 0 <= person["age"] <= 99


def test_a_json_object_is_one_as_far_as_it_comes(inference_model):
    text, _ = answer(inference_model, Grammar.json_object(inference_model.tokenizer), 20, seed=0)
    assert text.lstrip().startswith("{")


def test_where_more_may_follow_the_end_token_ends_the_answer(inference_model):
    end = inference_model.tokenizer.eos_id
    sampling = Sampling(temperature=0, grammar=Grammar.regex("a+", inference_model.tokenizer), logit_bias={end: 50.0})
    request = inference_model.engine().submit([5], sampling, max_new_tokens=9)  # no stops of its own
    assert inference_model.tokenizer.decode(request.result()) == "a"
    assert (request.finish_reason, request.n_generated) == ("stop", 2)


def test_neighbours_and_later_requests_are_not_bound_by_it(inference_model):
    engine, grammar = inference_model.engine(2, 64), Grammar.regex("(no ){8}", inference_model.tokenizer)
    bound, free, again = (
        engine.submit([7, 8], Sampling(temperature=0, grammar=which), max_new_tokens=40)
        for which in (grammar, None, grammar)
    )
    assert free.result() == naive(inference_model.model, [7, 8], 40)
    assert (
        inference_model.tokenizer.decode(bound.result())
        == inference_model.tokenizer.decode(again.result())
        == "no " * 8
    )


def test_a_tokenizer_of_single_characters_without_an_end_token(tmp_path):
    save_tokenizer(char_tokenizer("abcdefghij0123456789"), tmp_path)
    engine = Engine(tiny_model())
    tokenizer = Tokenizer(tmp_path)
    request = engine.submit([1], Sampling(grammar=Grammar.regex(r"[a-c]{2}\d", tokenizer), seed=0), max_new_tokens=9)
    assert re.fullmatch(r"[a-c]{2}\d", tokenizer.decode(request.result()))
    assert request.finish_reason == "stop"


def test_a_sentencepiece_tokenizer(tmp_path):
    tokenizer = Tokenizer(tokenizers_made_here.sentencepiece(tmp_path))
    assert tokenizer.backend == "sentencepiece"
    match = Grammar.regex(" ?Grüße the[!,]", tokenizer).start()
    for token in tokenizer.encode_ids("Grüße the!", bos=False):
        scores = torch.zeros(len(tokenizer) + 3)
        match.restrict(scores)
        assert scores[token] == 0 and scores[-3:].isneginf().all()
        assert match.accept(token)
    assert match.complete


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: Grammar.json_schema('{"type": ', t), "no valid JSON"),
        (lambda t: Grammar.json_schema("[1]", t), r"an object, not \[1\]"),
        (lambda t: Grammar.json_schema({"type": "strin"}, t), "JSON schema can't be used: "),
        (lambda t: Grammar.json_schema({"type": "array", "uniqueItems": True}, t), "JSON schema can't be used: "),
        (lambda t: Grammar.regex("(a", t), r"expression '\(a' can't be used: "),
        (lambda t: Grammar.regex(r"(?=a)b", t), "can't be used: "),
    ],
)
def test_what_is_no_grammar_is_told_in_one_sentence(inference_model, make, words):
    with pytest.raises(LitGPTError, match=words) as told:
        make(inference_model.tokenizer)
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


def test_without_llguidance_the_extra_is_named(inference_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LitGPTError, match=r"pip install 'litgpt\[structured\]'"):
        Grammar.regex("a", inference_model.tokenizer)
