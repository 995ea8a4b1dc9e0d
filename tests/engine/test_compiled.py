"""The compiled decode step says what the plain one does; where nothing compiles, one sentence tells."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.runtime import check_compiler
from tests.engine.oracle import MODELS, naive, prompts, tiny_model

GREEDY = Sampling(temperature=0)


def converse(model, **settings) -> None:
    """Runs more requests than slots, some of which share beginnings, against the oracle."""
    engine = Engine(model, slots=3, chunk=8, compile=True, **settings)
    requests = [engine.submit(p, GREEDY, max_new_tokens=14) for p in prompts(5, 30, 9, 64, 44)]
    answers = [request.result() for request in requests]
    assert answers == [naive(model, request.prompt, request.limit) for request in requests]
    again = [requests[0].prompt + requests[0].output[:9] + [3], [*requests[1].prompt, 4]]
    requests = [engine.submit(p, GREEDY, max_new_tokens=14) for p in again]
    answers = [request.result() for request in requests]
    assert answers == [naive(model, request.prompt, request.limit) for request in requests]


@pytest.mark.parametrize("case", [case for case in MODELS if case != "hybrid"])
def test_fixed_shapes_change_no_text(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)  # which takes minutes
    converse(tiny_model(case))


def test_one_position_of_a_slot_may_be_overwritten(monkeypatch):
    """A slot that is full to its end is not whole any more once a row without a request wrote there."""
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    model = tiny_model()
    engine = Engine(model, slots=2, length=32, compile=True)
    full, other = prompts(32, 3)
    first = engine.submit(full, GREEDY, max_new_tokens=1)
    assert first.result() == naive(model, full, 1)
    longer = engine.submit(other, GREEDY, max_new_tokens=9)
    again = engine.submit(full, GREEDY, max_new_tokens=1)
    assert longer.result() == naive(model, other, 9)
    assert again.result() == naive(model, full, 1)


@pytest.mark.slow
def test_what_inductor_makes_of_it_changes_no_text():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules, while it imports them
        converse(tiny_model("llama-window"))


def test_without_a_compiler_one_sentence_tells(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LitGPTError, match=r"needs a C\+\+ compiler"):
        Engine(tiny_model(), compile=True)
    with pytest.raises(LitGPTError, match="runs on mps"):
        check_compiler(torch.device("mps"))


def test_linear_attention_is_refused():
    with pytest.raises(LitGPTError, match="not for models with linear attention"):
        Engine(tiny_model("hybrid"), compile=True)
