"""Each setting does what it says, in any batch, and draws come from the distribution they should."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from litgpt.engine.sampling import Sampling, choose, penalize
from litgpt.errors import LitGPTError, quoted

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 1.0, 0.0, -3.0, 0.75])


def reference(sampling: Sampling) -> torch.Tensor:
    """The probabilities of `LOGITS` under some settings, written the slow way."""
    scores = LOGITS.double()
    if sampling.top_k is not None:
        worst = scores.sort(descending=True).values[min(sampling.top_k, len(scores)) - 1]
        scores = scores.masked_fill(scores < worst, -math.inf)
    p = (scores / sampling.temperature).softmax(-1)
    kept, mass = torch.zeros(len(p), dtype=torch.bool), 0.0
    for token in p.argsort(descending=True).tolist():
        if mass < sampling.top_p and p[token] >= sampling.min_p * p.max():
            kept[token] = True
        mass += float(p[token])
    p = p.masked_fill(~kept, 0.0)
    return p / p.sum()


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=3.0),
    Sampling(top_k=3),
    Sampling(top_k=100),
    Sampling(top_p=0.7),
    Sampling(top_p=0.95, temperature=1.5),
    Sampling(top_k=5, top_p=0.8, temperature=0.7),
    Sampling(min_p=0.3),
    Sampling(min_p=0.1, top_k=6),
    Sampling(min_p=0.2, top_p=0.9),
    Sampling(temperature=1e-30),
    Sampling(temperature=3e38, top_k=3),
]


def test_the_shares_of_all_draws_are_the_probabilities():
    n = 20_001
    draws = [(i + 0.5) / n for i in range(n)]
    for sampling in SETTINGS:
        tokens = choose(LOGITS.expand(n, -1), [sampling] * n, draws)
        shares = tokens.bincount(minlength=len(LOGITS)) / n
        torch.testing.assert_close(shares.double(), reference(sampling), atol=2e-4, rtol=0)


def test_random_draws_pass_a_chi_square_test():
    n, generator = 40_000, random.Random(0)
    for sampling in SETTINGS:
        p = reference(sampling)
        tokens = choose(LOGITS.expand(n, -1), [sampling] * n, [generator.random() for _ in range(n)])
        counts = tokens.bincount(minlength=len(p)).double()
        assert counts[p == 0].sum() == 0
        chi_square = float((((counts - n * p) ** 2) / (n * p))[p > 0].sum())
        assert chi_square < 26  # 7 degrees of freedom: exceeded once in 2,000 times


def test_a_row_depends_on_nothing_but_itself():
    torch.manual_seed(0)
    logits = torch.randn(len(SETTINGS) + 1, 50)
    samplings = [Sampling(temperature=0), *SETTINGS]
    draws = [random.Random(1).random() for _ in samplings]
    together = choose(logits, samplings, draws).tolist()
    assert together == [int(choose(logits[[i]], samplings[i : i + 1], draws[i : i + 1])) for i in range(len(samplings))]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(top_p=0), Sampling(top_k=1), Sampling(temperature=0, top_k=5)]
)
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-53])
def test_settings_that_leave_only_the_best(sampling, draw):
    assert choose(LOGITS[None], [sampling], [draw]).tolist() == [0]


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(min_p=0.9)])
def test_the_ends_of_the_unit_interval_stay_among_the_candidates(sampling):
    p = reference(sampling)
    for draw in (0.0, 1 - 2**-53):
        assert p[choose(LOGITS[None], [sampling], [draw])] > 0


def test_penalties():
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    scores = penalize(LOGITS, sampling, prompt=[3, 5], output=[0, 0, 4])
    expected = LOGITS.clone()
    expected[3] = -2.0  # a negative score is multiplied
    expected[0] = 2.0 / 2 - 0.5 - 2 * 0.25
    expected[4] = 1.0 / 2 - 0.5 - 0.25
    torch.testing.assert_close(scores, expected)


def test_no_penalties_are_told_from_some():
    assert not Sampling(temperature=0.3, top_k=4).penalizing
    assert Sampling(presence_penalty=0.1).penalizing


def test_a_temperature_that_float32_rounds_to_nothing_takes_the_best():
    assert choose(LOGITS.flip(0)[None], [Sampling(temperature=1e-50)], [0.3]).tolist() == [7]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", None),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", 2.5),
        ("min_p", [0.1]),
        ("logit_bias", {1.5: 0.0}),
        ("logit_bias", [3]),
        ("logprobs", True),
        ("seed", 1.5),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_k", -3),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("top_p", math.nan),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("logit_bias", {3: math.inf}),
        ("logprobs", -1),
        ("logprobs", 21),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_value_out_of_range_is_told(name, value):
    with pytest.raises(LitGPTError, match=re.escape(f"{name} is {quoted(value)}; it must be ")):
        Sampling(**{name: value})


def test_the_seeds_of_samples_count_up_and_stay_seeds():
    assert [Sampling(seed=2**64 - 1).of_sample(number).seed for number in range(3)] == [2**64 - 1, 0, 1]
    assert Sampling().of_sample(3).seed is None
