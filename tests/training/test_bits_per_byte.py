"""Validation in bits per byte."""

from __future__ import annotations

import math

import pytest
import torch

from litgpt.args import TrainArgs
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.training.loss import IGNORED
from litgpt.training.metrics.bits_per_byte import TextLoss, token_bytes
from tests.paths import ROOT
from tests.training.runs import tiny_model

TEXT = "It is a truth — universally acknowledged — that ëvery man…\n\n  wants a 🐎.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(ROOT / "litgpt" / "assets" / "austen-2m")


def model_of(tokenizer: Tokenizer) -> GPT:
    return tiny_model(seed=1, block_size=64, padded_vocab_size=len(tokenizer) + 7)


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    counts = token_bytes(tokenizer, len(tokenizer) + 7)
    ids = tokenizer.encode(TEXT, bos=True, eos=True)
    assert counts[ids].sum() == len(TEXT.encode())
    assert not counts[len(tokenizer) :].any() and not counts[tokenizer.eos_id]


def test_bits_are_divided_by_the_bytes_of_what_is_learned(tokenizer: Tokenizer) -> None:
    loss = TextLoss(model_of(tokenizer), TrainArgs(), tokenizer)
    ids = tokenizer.encode(TEXT)[None].long()
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    loss.train()(inputs, targets)
    assert loss.metrics(loss.measured().tolist()) == {}, "training was counted"
    targets[:, :3] = IGNORED
    first, second = (loss.eval()(inputs, targets).item() for _ in range(2))
    n_bytes = sum(len(tokenizer.token_bytes(token)) for token in targets[0, 3:].tolist())
    found = loss.metrics(loss.measured().tolist())
    assert found == {"bits_per_byte": pytest.approx((first + second) / (2 * n_bytes) / math.log(2))}
    assert loss.metrics(loss.measured().tolist()) == {}, "it was told twice"


def test_a_byte_costs_as_much_as_evaluation_says(tokenizer: Tokenizer) -> None:
    """A model that knows nothing needs the logarithm of its vocabulary for each token."""
    model = model_of(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ids = tokenizer.encode(TEXT, bos=True)[None].long()
    loss = TextLoss(model, TrainArgs(), tokenizer).eval()
    loss(ids[:, :-1], ids[:, 1:])
    expected = (ids.numel() - 1) * math.log2(len(tokenizer) + 7) / len(TEXT.encode())
    assert loss.metrics(loss.measured().tolist())["bits_per_byte"] == pytest.approx(expected)
