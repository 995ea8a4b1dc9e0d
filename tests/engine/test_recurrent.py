"""The engine with layers of linear attention, whose state can't go back: greedy text is still the naive oracle's."""

from __future__ import annotations

import pytest
import torch

from litgpt.engine import memory
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.engine.speculative import SpeculativeEngine
from litgpt.errors import LitGPTError
from tests.engine.oracle import naive, prompts, tiny_model

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return tiny_model("hybrid")


def test_a_shared_beginning_that_others_went_on_from_is_computed_again(model):
    engine = Engine(model, slots=2)
    system = prompts(17)[0]
    for tail in ([5, 6, 7], [5, 6], [5, 6, 7, 8], [90], [5, 6, 7]):
        request = engine.submit([*system, *tail], GREEDY, max_new_tokens=6)
        assert request.result() == naive(model, request.prompt, 6)
        assert request.n_shared == 0


def test_a_conversation_goes_on_from_the_state_that_its_last_turn_left(model):
    engine = Engine(model, slots=1)
    first = engine.submit(prompts(9)[0], GREEDY, max_new_tokens=5)
    said = first.result()
    second = engine.submit([*first.prompt, *said, 3, 4], GREEDY, max_new_tokens=5)
    assert second.result() == naive(model, second.prompt, 5)
    assert second.n_shared == len(first.prompt) + len(said) - 1  # the last token was not fed back


def test_the_state_of_a_running_request_is_shared(model):
    engine = Engine(model, slots=2)
    running = engine.submit(prompts(9)[0], GREEDY, max_new_tokens=20)
    for _ in range(4):
        engine.step()
    branch = engine.submit([*running.prompt, *running.output, 7], GREEDY, max_new_tokens=9)
    assert branch.result() == naive(model, branch.prompt, 9)
    assert running.result() == naive(model, running.prompt, 20)
    assert branch.n_shared == len(running.prompt) + 4  # a step feeds the running ones first


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_prompts_in_chunks_while_others_leave(model, chunk):
    engine = Engine(model, slots=3, chunk=chunk)
    limits = {3: 2, 20: 7, 11: 12, 30: 3, 1: 9, 8: 4}
    requests = [
        engine.submit(prompt, GREEDY, max_new_tokens=limit)
        for prompt, limit in zip(prompts(*limits), limits.values(), strict=True)
    ]
    for request in requests:
        assert request.result() == naive(model, request.prompt, request.limit)


def test_after_a_failed_step_nothing_of_it_is_used(model, monkeypatch):
    engine = Engine(model, slots=1, chunk=5)
    prompt = prompts(12)[0]
    engine.submit(prompt, GREEDY, max_new_tokens=3)
    engine.step()
    monkeypatch.setattr(model.transformer.h[1].attn, "attend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    monkeypatch.undo()
    assert engine.submit(prompt, GREEDY, max_new_tokens=3).result() == naive(model, prompt, 3)


def test_the_longest_sequence_that_fits_counts_states_once(model, monkeypatch):
    def nbytes(length: int) -> int:
        return model.cache_nbytes(2, length, torch.float32)

    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * nbytes(20) + 9)
    assert memory.longest_fit(nbytes, 64, 2, model.layer_devices) == 20


def test_guessing_ahead_is_refused(model):
    with pytest.raises(LitGPTError, match="can't go back"):
        SpeculativeEngine(model, tiny_model("llama"))
    with pytest.raises(LitGPTError, match="can't go back"):
        SpeculativeEngine(tiny_model("llama"), model)
