"""The objective against the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from litgpt.lora import LoRA
from litgpt.training.objective import NextToken
from tests.training.runs import VOCABULARY, tiny_model

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": dict(tie_embeddings=True),
    "biased": dict(lm_head_bias=True),
    "capped": dict(final_logit_softcapping=2.0),
    "divided and biased": dict(logits_divisor=8.0, lm_head_bias=True, final_logit_softcapping=2.0),
}


@pytest.mark.parametrize("method", [None, LoRA(r=2, dropout=0.0), LoRA(r=2, dropout=0.0, head=True)])
@pytest.mark.parametrize("case", HEADS)
def test_it_is_the_cross_entropy_of_the_models_logits(case, method):
    model = tiny_model(**HEADS[case]).double()
    if method is not None:
        method.attach(model)
        model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(VOCABULARY, (2, 9))
    targets = torch.randint(VOCABULARY, (2, 9))
    targets[0, :4] = -100
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
    found = NextToken(model)(ids, targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    pairs = zip(torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [None, LoRA(r=2, dropout=0.0, head=True)])
def test_z_loss_and_smoothing_are_part_of_training_and_not_of_validation(method):
    model = tiny_model(final_logit_softcapping=5.0)
    if method is not None:
        method.attach(model)
    ids = torch.randint(VOCABULARY, (2, 9))
    targets = torch.randint(VOCABULARY, (2, 9))
    logits = model(ids).flatten(0, 1)
    plain = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    whole = F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=0.1)
    whole = whole + 0.01 * logits.logsumexp(-1).square().sum()
    objective = NextToken(model, z_loss=0.01, label_smoothing=0.1).eval()
    torch.testing.assert_close(objective(ids, targets), plain)
    torch.testing.assert_close(objective.train()(ids, targets), whole)
