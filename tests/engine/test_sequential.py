"""Layers over devices in sequence."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.engine.sequential import runs, spread_layers
from litgpt.errors import LitGPTError
from litgpt.model.cache import Span
from tests.engine.oracle import MODELS, naive, prompts, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ([1] * 6, 3, [2, 2, 2]),
        ([1] * 7, 2, [3, 4]),
        ([9, 1, 1, 1], 2, [1, 3]),
        ([1, 1, 1, 9], 3, [2, 1, 1]),
        ([5], 1, [1]),
    ],
)
def test_runs_are_of_about_the_same_size(sizes, n, expected):
    found = runs(sizes, n)
    assert [len(run) for run in found] == expected
    assert [number for run in found for number in run] == list(range(len(sizes)))


@pytest.mark.parametrize("case", MODELS)
def test_the_text_stays_the_same(case):
    model = tiny_model(case)
    expected = [naive(model, prompt, 10) for prompt in prompts(9, 4)]
    before = asdict(model.config)
    spread_layers(model, [CPU, CPU])
    assert asdict(model.config) == before
    engine = Engine(model, slots=2)
    requests = [engine.submit(prompt, Sampling(temperature=0), max_new_tokens=10) for prompt in prompts(9, 4)]
    assert [request.result() for request in requests] == expected


WITHOUT_VALUES = [case for case in MODELS if case not in ("hybrid", "latent-experts")]
"""Autocast and the counting of experts' tokens know no meta device."""


@pytest.mark.parametrize("case", WITHOUT_VALUES)
def test_what_a_layer_needs_is_where_the_layer_is(case):
    """The second device has no values, so only a machine without memory is needed to see where they would be."""
    second = torch.device("meta")
    model = tiny_model(case)
    spread_layers(model, [CPU, second])
    places = [next(block.parameters()).device for block in model.transformer.h]
    assert places == [CPU] + [second] * (len(places) - 1)
    cache = model.new_cache(3, 20)
    assert [keys.device for keys in cache.keys] == places
    model.transformer.ln_f = nn.Identity()  # where what has no values would come back
    idx = torch.zeros(2, 7, dtype=torch.long)
    assert model.hidden(idx).device == second
    assert model.hidden(idx[:1], span=Span(cache, slice(0, 1), [0])).device == second
    assert model.hidden(idx[:, :1], span=Span(cache, slice(0, 2), [7, 3])).device == second


def test_more_devices_than_layers_are_refused():
    with pytest.raises(LitGPTError, match="2 layers can't be spread over 3 devices; use at most 2"):
        spread_layers(tiny_model(), [CPU] * 3)
