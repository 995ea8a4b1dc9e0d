"""A small model that drafts changes neither greedy text nor the distribution of sampled text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from litgpt.engine import memory
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling, penalize, probabilities
from litgpt.engine.speculative import SpeculativeEngine
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from tests.engine.oracle import MODELS, naive, prompts, tiny_model

GREEDY = Sampling(temperature=0)
REWINDABLE = [case for case, settings in MODELS.items() if "linear_attention" not in settings]


def draft_of(model: GPT, noise: float = 0.02) -> GPT:
    """A model that is right most of the time."""
    draft = tiny_model(model.config.name)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return draft


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model()


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("case", REWINDABLE)
def test_greedy_text_is_that_of_the_large_model(case, k):
    model = tiny_model(case)
    (prompt,) = prompts(9)
    expected = naive(model, prompt, 24)
    engines = [SpeculativeEngine(model, draft_of(model, noise), k) for noise in (0.01, 0.02, 0.05, 0.1)]
    for engine in engines:
        assert engine.submit(prompt, GREEDY, max_new_tokens=24).result() == expected
    n_accepted, n_drafted = (sum(getattr(engine, name) for engine in engines) for name in ("n_accepted", "n_drafted"))
    assert 0 < n_accepted < n_drafted  # some were right, some wrong


@pytest.mark.parametrize("case", REWINDABLE)
def test_requests_join_and_leave_a_batch(case):
    model = tiny_model(case)
    engine = SpeculativeEngine(model, draft_of(model), 3, slots=3, chunk=8)
    requests = [engine.submit(p, GREEDY, max_new_tokens=5 + 3 * i) for i, p in enumerate(prompts(1, 21, 7, 30, 2, 12))]
    for _ in range(4):
        engine.step()
    requests += [engine.submit(p, GREEDY, max_new_tokens=9) for p in prompts(13, 3, seed=5)]
    assert [r.result() for r in requests] == [naive(model, r.prompt, r.limit) for r in requests]
    assert not engine.busy


def test_a_perfect_draft_is_always_right(model):
    engine = SpeculativeEngine(model, model, 4)
    assert engine.submit(prompts(5)[0], GREEDY, max_new_tokens=21).result() == naive(model, prompts(5)[0], 21)
    assert engine.n_accepted == engine.n_drafted == 16


def test_the_answer_ends_with_the_context(model):
    engine = SpeculativeEngine(model, draft_of(model), 5, slots=2, length=30)
    long, short = (engine.submit(prompt, GREEDY) for prompt in prompts(20, 4))
    assert long.result() == naive(model, long.prompt, 11)
    assert short.result() == naive(model, short.prompt, 27)


def test_a_stop_within_a_draft_ends_the_answer(model):
    (prompt,) = prompts(9)
    expected = naive(model, prompt, 24)
    stop = expected[7]
    request = SpeculativeEngine(model, model, 5).submit(prompt, GREEDY, stop=[stop])
    assert request.result() == expected[: expected.index(stop)]
    assert request.finish_reason == "stop"


@torch.no_grad()
def exact_distributions(model: GPT, prompt: list[int], sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities of the second and of the third token, over all that may stand before it."""

    def after(outputs: list[list[int]]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + output for output in outputs]))[:, -1]
        if sampling.penalizing:
            pairs = zip(logits, outputs, strict=True)
            logits = torch.stack([penalize(row, sampling, prompt, output) for row, output in pairs])
        return probabilities(logits, sampling)

    n = model.config.padded_vocab_size
    first = after([[]])[0]
    second = first[:, None] * after([[token] for token in range(n)])
    third = second.flatten() @ after([[i, j] for i in range(n) for j in range(n)])
    return second.sum(0), third


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.5, seed=0),
        Sampling(temperature=1.5, top_k=8, seed=0),
        Sampling(temperature=2.0, top_p=0.7, min_p=0.02, seed=0),
        Sampling(temperature=1.5, repetition_penalty=1.3, seed=0),
    ],
    ids=["temperature", "top_k", "top_p", "penalty"],
)
def test_sampled_text_has_the_distribution_of_the_large_model(model, sampling):
    """Pearson's chi-squared of the second and third token against their exact probabilities."""
    n, prompt = 500, prompts(6)[0]
    engine = SpeculativeEngine(model, draft_of(model, 0.2), 3, slots=100)
    requests = [engine.submit(prompt, replace(sampling, seed=number), max_new_tokens=4) for number in range(n)]
    answers = [request.result() for request in requests]
    assert sampling.penalizing or 0 < engine.n_accepted < engine.n_drafted  # with penalties nothing is drafted
    for place, expected in enumerate(exact_distributions(model, prompt, sampling), 1):
        seen = torch.bincount(torch.tensor([answer[place] for answer in answers]), minlength=len(expected))
        assert not seen[expected == 0].any()
        frequent = expected * n >= 5
        seen, expected = (torch.cat([x[frequent], x[~frequent].sum()[None]]) for x in (seen, expected * n))
        chi_squared = ((seen - expected) ** 2 / expected.clamp(min=1)).sum()
        freedom = len(seen) - 1
        assert freedom >= 5
        assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5  # mean and standard deviation of chi-squared


def test_a_seed_gives_the_same_text_in_any_company(model):
    sampling, draft = Sampling(temperature=1.3, seed=7), draft_of(model)
    (prompt,) = prompts(8)
    alone = SpeculativeEngine(model, draft, 3).submit(prompt, sampling, max_new_tokens=20).result()
    engine = SpeculativeEngine(model, draft, 3, slots=3)
    others = [
        engine.submit(p, Sampling(temperature=1.0, seed=i), max_new_tokens=9 + i) for i, p in enumerate(prompts(4, 40))
    ]
    assert engine.submit(prompt, sampling, max_new_tokens=20).result() == alone
    assert all(len(other.result()) > 8 for other in others)


def test_logprobs_are_those_of_the_large_model(model):
    (prompt,) = prompts(9)
    request = SpeculativeEngine(model, draft_of(model), 3).submit(prompt, Sampling(temperature=0, logprobs=2), (), 10)
    tokens = request.result()
    with torch.no_grad():
        expected = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert [noted.token for noted in request.logprobs] == tokens
    torch.testing.assert_close(
        torch.tensor([noted.logprob for noted in request.logprobs]), expected[range(10), tokens], rtol=1e-4, atol=1e-4
    )


def test_a_larger_padded_vocabulary_of_either_model_does_no_harm(model):
    (prompt,) = prompts(9)
    for padded in (104, 128):
        draft = tiny_model(vocab_size=96, padded_vocab_size=padded)
        engine = SpeculativeEngine(model, draft, 3)
        assert engine.submit(prompt, GREEDY, max_new_tokens=12).result() == naive(model, prompt, 12)


def test_the_caches_of_both_models_are_counted_and_refused_together(model, monkeypatch):
    engine = SpeculativeEngine(model, model, slots=2)
    alone = Engine(model, slots=2).cache_nbytes
    assert engine.cache_nbytes == 2 * alone
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * alone - 1)
    assert Engine(model, slots=2)
    with pytest.raises(LitGPTError, match="KV cache for 2 x 64 tokens"):
        SpeculativeEngine(model, model, slots=2)


def test_models_of_other_vocabularies_are_refused(model):
    with pytest.raises(LitGPTError, match="vocabulary of 90 tokens is not the target's of 96"):
        SpeculativeEngine(model, tiny_model(vocab_size=90), 3)


def test_models_that_cannot_take_a_token_back_are_refused(model):
    for target, draft in ((model, tiny_model("hybrid")), (tiny_model("hybrid"), model)):
        with pytest.raises(LitGPTError, match="the state of linear attention can't go back"):
            SpeculativeEngine(target, draft, 3)


def test_no_drafts_are_refused(model):
    with pytest.raises(LitGPTError, match="speculative_k is 0; it must be 1 or more"):
        SpeculativeEngine(model, model, 0)
