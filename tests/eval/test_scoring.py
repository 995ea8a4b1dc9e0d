"""Scores of texts that are there already, whatever they share, as one plain forward pass of each gives them."""

from __future__ import annotations

import random

import pytest
import torch

from litgpt.errors import LitGPTError
from litgpt.eval import scoring
from litgpt.eval.scoring import Score, Scorer
from tests.engine.oracle import MODELS, tiny_model

LENGTH = 64
"""Context of the tiny models."""


@torch.no_grad()
def naive(model, context, continuation) -> Score:
    tokens = [*context, *continuation][-(LENGTH + 1) :]
    logprobs = model(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)[-len(continuation) :]  # (T, V)
    wanted = torch.tensor(continuation)
    total = logprobs.gather(1, wanted[:, None]).sum()
    return Score(float(total), bool((logprobs.argmax(-1) == wanted).all()))


def random_pairs(seed: int) -> list[tuple[list[int], list[int]]]:
    """Contexts that begin alike or not, with several continuations that begin alike or not; some longer than fits."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(96) for _ in range(rng.randint(least, most))]

    pairs = []
    for _ in range(4):
        root = ids(0, 3) if rng.random() < 0.3 else ids(34, 40)
        for _ in range(rng.randint(1, 4)):
            question = [*root, *ids(1, 20)]
            answer = ids(1, 4)
            pairs += [
                (question, [*(answer if rng.random() < 0.5 else []), *ids(1, 9)]) for _ in range(rng.randint(1, 4))
            ]
    rng.shuffle(pairs)
    return pairs


def check(model, pairs, scorer=None) -> None:
    found = (scorer or Scorer(model)).score(pairs)
    for pair, score in zip(pairs, found, strict=True):
        expected = naive(model, *pair)
        assert score.logprob == pytest.approx(expected.logprob, abs=2e-3)
        assert score.greedy == expected.greedy


@pytest.mark.parametrize("case", MODELS)
def test_scores_are_those_of_plain_passes(case, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 8)  # rows of a pass end in other chunks
    model = tiny_model(case)
    check(model, random_pairs(1))
    check(model, random_pairs(2), Scorer(model, rows=3))


def test_rotary_embeddings_that_depend_on_the_length_are_those_of_each_text():
    factors = dict(short_factor=[1.0, 1.1, 1.3, 1.7], long_factor=[1.0, 2.0, 3.0, 5.0])
    adjust = dict(factor=4.0, original_max_seq_len=45, **factors)
    check(tiny_model("llama-grouped", rope_adjustments=adjust), random_pairs(3))


def test_greedy_continuations_are_told():
    model = tiny_model()
    context = [5, 6, 7]
    with torch.no_grad():
        best = int(model(torch.tensor([context]))[0, -1].argmax())
    said = [score.greedy for score in Scorer(model).score([(context, [best]), (context, [(best + 1) % 96])])]
    assert said == [True, False]


def count_tokens(model, pairs, **settings) -> int:
    """Tokens that go through the model, padding included."""
    seen = []
    hidden = model.hidden
    model.hidden = lambda idx, *args, **kwargs: (seen.append(idx.numel()), hidden(idx, *args, **kwargs))[1]
    Scorer(model, **settings).score(pairs)
    del model.hidden
    return sum(seen)


def test_what_texts_begin_with_alike_is_computed_once():
    model = tiny_model()
    examples = list(range(40))
    questions = [[*examples, 50 + n, *range(60 + n, 68 + n)] for n in range(6)]
    pairs = [(question, [answer, 3, 4]) for question in questions for answer in (1, 2, 5, 9)]
    # the examples, each question without its last token, and behind it each answer without its last
    assert count_tokens(model, pairs) == 40 + 6 * 8 + 24 * 3
    letters = [(question, [answer]) for question in questions for answer in (1, 2, 5, 9)]
    assert count_tokens(model, letters) == 40 + 6 * 9  # answers of one token are looked up in the same scores


def test_texts_that_share_nothing_are_not_padded():
    pairs = [([n] * (3 + n), [1, 2]) for n in range(20)]
    assert count_tokens(tiny_model(), pairs) == sum(3 + n + 1 for n in range(20))


def test_training_goes_on_as_before():
    model = tiny_model().train()
    before = torch.random.get_rng_state()
    Scorer(model).score([([1, 2], [3])])
    assert model.training and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (([], [1]), "Pair 0 has an empty context"),
        (([1], []), "Pair 0 has an empty context"),
        (([1], [1] * 65), "longer than the model's context of 64"),
        (([1], [96]), "the token id 96"),
    ],
)
def test_what_makes_no_sense_is_refused(pair, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        Scorer(tiny_model()).score([pair])
