"""A deterministic engine's answers, to the bit: alone, first or tenth, among others, whatever the kind of model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.request import Request
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.cache import Span
from litgpt.prompts import Default
from tests.engine.oracle import MODELS, tiny_model

LENGTH = 64
NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@functools.cache
def model_in(case: str, numbers: str) -> GPT:
    return tiny_model(case).requires_grad_(False).to(NUMBERS[numbers])


def engine_for(case: str, numbers: str, slots: int = 4, chunk: int = 8) -> Engine:
    """Its fixed chunk is small, so that short prompts have several."""
    return Engine(model_in(case, numbers), slots, LENGTH, chunk=chunk, deterministic=True)


def answer(request: Request) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities, which differ in a bit before tokens do."""
    return request.result(), [noted.logprob for noted in request.logprobs]


def sampling(seed: int, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Sampling:
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, logprobs=seed % 3)


SHARED = list(range(1, 40))
asked = st.tuples(
    st.builds(
        lambda shared, own: SHARED[:shared] + own,
        st.integers(0, len(SHARED)),
        st.lists(st.integers(0, 95), min_size=1, max_size=12),
    ),
    st.builds(
        sampling,
        seed=st.integers(0, 99),
        temperature=st.sampled_from([0, 0.7, 1.5]),
        top_k=st.sampled_from([None, 3, 50]),
        top_p=st.sampled_from([1.0, 0.9]),
    ),
    st.integers(1, 8),  # tokens
    st.integers(0, 3),  # steps until the next request comes
)


@pytest.mark.parametrize("numbers", NUMBERS)
@settings(max_examples=8, deadline=None)
@given(requests=st.lists(asked, min_size=2, max_size=7), slots=st.integers(1, 5))
def test_whatever_else_runs_and_ran(numbers, requests, slots):
    engine = engine_for("llama-grouped", numbers, slots)
    among = []
    for prompt, settings_, n_tokens, steps in requests:
        among.append(engine.submit(prompt, settings_, max_new_tokens=n_tokens))
        for _ in range(steps):
            engine.step()
    found = [answer(request) for request in among]
    for (prompt, settings_, n_tokens, _), one in zip(requests, found, strict=True):
        alone = engine_for("llama-grouped", numbers).submit(prompt, settings_, max_new_tokens=n_tokens)
        assert answer(alone) == one
        assert answer(engine.submit(prompt, settings_, max_new_tokens=n_tokens)) == one  # the prompt is known


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("case", MODELS)
def test_whatever_the_model(case, numbers):
    prompts = [[*SHARED[:n], n] for n in (3, 16, 21)]
    own = [sampling(seed) for seed in range(len(prompts))]
    alone = [
        answer(engine_for(case, numbers).submit(prompt, settings_, max_new_tokens=6))
        for prompt, settings_ in zip(prompts, own, strict=True)
    ]
    engine = engine_for(case, numbers)
    for _ in range(2):
        requests = [engine.submit(p, settings_, max_new_tokens=6) for p, settings_ in zip(prompts, own, strict=True)]
        assert [answer(request) for request in requests] == alone


@pytest.mark.parametrize("numbers", NUMBERS)
def test_is_the_plain_way(numbers):
    """The oracle: one cache of its own, its prompt part by part, then token by token."""
    model, prompt = model_in("llama-grouped", numbers), SHARED[:21]
    cache = model.new_cache(1, LENGTH)
    tokens: list[int] = []
    parts = [prompt[start : start + 8] for start in range(0, len(prompt), 8)]
    with torch.no_grad():
        at = 0
        while len(tokens) < 20:
            part = parts.pop(0) if parts else tokens[-1:]
            hidden = model.hidden(torch.tensor([part]), span=Span(cache, slice(0, 1), [at]))
            at += len(part)
            if not parts:
                tokens.append(int(model.head(hidden[:, -1]).argmax()))
    engine = engine_for("llama-grouped", numbers)
    others = [engine.submit(SHARED[:n], sampling(n), max_new_tokens=15) for n in (5, 30)]
    assert engine.submit(prompt, Sampling(temperature=0), max_new_tokens=20).result() == tokens
    assert all(request.result() for request in others)


def test_whole_parts_of_a_known_prompt_are_not_computed_again():
    engine = engine_for("llama-grouped", "bfloat16")
    first = engine.submit(SHARED[:21], sampling(1), max_new_tokens=6)
    first.result()
    again = engine.submit(SHARED[:21], sampling(1), max_new_tokens=6)
    assert again.result() == first.output and again.n_shared == 16
    longer = engine.submit([*first.prompt, *first.output, 7], sampling(1), max_new_tokens=2)  # a chat's next turn
    assert longer.result() and longer.n_shared == 16  # the answer was computed token by token


def test_what_computes_several_answers_at_once_is_refused():
    tokenizer: Any = None  # not needed
    drafting = InferenceModel(model_in("llama-grouped", "bfloat16"), tokenizer, Default(), deterministic=True)
    drafting.draft = drafting.model
    with pytest.raises(LitGPTError, match="leave out"):
        drafting.engine()
    with pytest.raises(LitGPTError, match="leave it out"):
        Engine(model_in("llama", "float32"), compile=True, deterministic=True)
