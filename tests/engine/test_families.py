"""Greedy text of every family's model is the uncached one's: alone, in mixed batches, joined midway, streamed, and with
windows whose keys and values make room for newer ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from litgpt.checkpoint.reader import load_model
from litgpt.engine.engine import Engine
from litgpt.engine.request import Request
from litgpt.engine.sampling import Sampling
from litgpt.model import GPT
from tests.engine.oracle import prompts
from tests.tiny import BY_LENGTH, CASES, INSIDE, hf_folder, wide_ones_slow

GREEDY = Sampling(temperature=0)
LENGTH = 48  # within the original context of every case with two kinds of RoPE


@pytest.fixture(scope="module", params=wide_ones_slow(case for case in (*CASES, *INSIDE) if case not in BY_LENGTH))
def model(request, tmp_path_factory) -> GPT:
    return load_model(hf_folder(request.param, tmp_path_factory.mktemp(request.param)))


def assert_greedy(model: GPT, requests: Sequence[Request]) -> None:
    """Every token of each answer is the best one after those before it, with neither cache nor batch."""
    for request in requests:
        answer = request.result()
        assert len(answer) == request.limit
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt, *answer]]))[0]
        assert answer == logits[len(request.prompt) - 1 : -1].argmax(dim=-1).tolist()


def test_alone_and_streamed(model):
    (prompt,) = prompts(9)
    request = Engine(model, length=LENGTH).submit(prompt, GREEDY, max_new_tokens=14)
    assert list(request) == request.output
    assert_greedy(model, [request])


def test_in_a_batch_of_mixed_lengths_some_of_which_join_midway(model):
    engine = Engine(model, slots=3, length=LENGTH, chunk=8)
    requests = [
        engine.submit(prompt, GREEDY, max_new_tokens=5 + 3 * i) for i, prompt in enumerate(prompts(8, 30, 11, 20))
    ]
    for _ in range(6):
        engine.step()
    again = requests[0].prompt + requests[0].output[:3] + [5]  # shares a beginning with what ran before
    requests += [engine.submit(prompt, GREEDY, max_new_tokens=12) for prompt in ([7], again)]
    assert_greedy(model, requests)
    assert not engine.busy


def test_a_conversation_that_goes_on(model):
    """Each turn's prompt begins with the last one's prompt and answer."""
    engine = Engine(model, length=LENGTH, chunk=4)
    (prompt,) = prompts(10)
    for turn in range(3):
        request = engine.submit(prompt, GREEDY, max_new_tokens=5)
        assert_greedy(model, [request])
        assert turn == 0 or request.n_shared >= len(prompt) - 4
        prompt = [*prompt, *request.output, 3 + turn, 4]
