"""The losses against their papers' formulas as TRL computes them, values and gradients, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.errors import UsageError
from litgpt.training.preference.losses import PreferenceLoss

P = 7


def log_probs() -> list[Tensor]:
    """Of chosen and rejected answers by the policy, which has gradients, and by the reference, `(P,)` each."""
    torch.manual_seed(0)
    return [
        (-torch.rand(P, dtype=torch.float64) * 6 - 0.01).requires_grad_(trained)
        for trained in (True, True, False, False)
    ]


def cdpo(beta: float, smoothing: float) -> Callable[..., Tensor]:
    def loss(w: Tensor, l: Tensor, ref_w: Tensor, ref_l: Tensor) -> Tensor:  # noqa: E741
        logits = (w - l) - (ref_w - ref_l)
        return -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing

    return loss


def ipo(beta: float) -> Callable[..., Tensor]:
    return lambda w, lost, ref_w, ref_lost: ((w - ref_w) - (lost - ref_lost) - 1 / (2 * beta)) ** 2  # equation 17


def simpo(beta: float, gamma: float, smoothing: float) -> Callable[..., Tensor]:
    def loss(w: Tensor, l: Tensor, *_: Tensor) -> Tensor:  # noqa: E741
        logits = w - l - gamma / beta
        return -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing

    return loss


def orpo(beta: float) -> Callable[..., Tensor]:
    def loss(w: Tensor, l: Tensor, *_: Tensor) -> Tensor:  # noqa: E741
        log_odds = (w - l) - (torch.log1p(-torch.exp(w)) - torch.log1p(-torch.exp(l)))
        return -beta * F.logsigmoid(log_odds)

    return loss


PAIRED = {
    "dpo": (PreferenceLoss("dpo"), cdpo(0.1, 0.0)),
    "dpo, smoothed": (PreferenceLoss("dpo", beta=0.7, label_smoothing=0.2), cdpo(0.7, 0.2)),
    "ipo": (PreferenceLoss("ipo", beta=0.3), ipo(0.3)),
    "simpo": (PreferenceLoss("simpo"), simpo(2.0, 0.5, 0.0)),
    "simpo, smoothed": (PreferenceLoss("simpo", beta=2.5, simpo_gamma=1.4, label_smoothing=0.1), simpo(2.5, 1.4, 0.1)),
    "orpo": (PreferenceLoss("orpo", beta=0.25), orpo(0.25)),
}


@pytest.mark.parametrize("case", PAIRED)
def test_a_loss_of_pairs_and_its_gradients(case: str) -> None:
    loss, formula = PAIRED[case]
    tensors = log_probs()
    found, expected = loss.of_pairs(*tensors), formula(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        *(torch.autograd.grad(losses.mean(), tensors[:2]) for losses in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_ktos_loss_of_single_answers_and_its_gradients() -> None:
    chosen, rejected, ref_chosen, ref_rejected = log_probs()
    kl, beta = torch.tensor(0.3, dtype=torch.float64), 0.2
    wanted_losses = 1 - F.sigmoid(beta * ((chosen - ref_chosen) - kl))
    unwanted_losses = 1 - F.sigmoid(beta * (kl - (rejected - ref_rejected)))
    expected = torch.cat((1.3 * wanted_losses, 0.8 * unwanted_losses))
    loss = PreferenceLoss("kto", beta=beta, desirable_weight=1.3, undesirable_weight=0.8)
    ratios = torch.cat((chosen - ref_chosen, rejected - ref_rejected))
    found = loss.of_singles(ratios, torch.arange(2 * P) < P, kl)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    both = (torch.autograd.grad(losses.mean(), [chosen, rejected]) for losses in (found, expected))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_where_policy_and_reference_are_equal_dpo_is_the_logarithm_of_two() -> None:
    chosen, rejected, *_ = log_probs()
    for smoothing in (0.0, 0.3):
        losses = PreferenceLoss("dpo", label_smoothing=smoothing).of_pairs(chosen, rejected, chosen, rejected)
        torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)), rtol=0, atol=1e-15)


def test_odds_of_answers_that_are_certain_are_finite() -> None:
    certain = torch.tensor([0.0, -1e-9, -1e-3, -700.0], requires_grad=True)
    loss = PreferenceLoss("orpo").of_pairs(certain, certain.flip(0), certain, certain)
    (gradient,) = torch.autograd.grad(loss.sum(), [certain])
    assert loss.isfinite().all() and gradient[2:].isfinite().all()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"kind": "ipo", "label_smoothing": 0.1}, "--label_smoothing is for --loss dpo or simpo, not ipo"),
        ({"kind": "dpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"kind": "dpo", "beta": 0.0}, "--beta must be above 0"),
        ({"kind": "dpo", "simpo_gamma": 1.0}, "--simpo_gamma is for --loss simpo"),
        ({"kind": "dpo", "desirable_weight": 1.0}, "--desirable_weight is for --loss kto"),
        ({"kind": "orpo", "undesirable_weight": -1.0}, "at least 0"),
        ({"kind": "kto", "sft_weight": 1.0}, "--sft_weight is for"),
    ],
)
def test_options_that_a_loss_has_no_use_for_are_refused(options: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        PreferenceLoss(**options)
