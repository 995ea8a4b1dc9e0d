"""Losses and gradients against TRL's own code on the same tensors, in float64.

A step of ours goes through the objective that trains, over packed samples of a real model. TRL gets log-probabilities
of all tokens, each from all logits of its sequence, and returns the loss and its gradients by these; the
chain rule takes them on to the weights. So losses, masks, lengths and means are compared, not formulas alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from litgpt.model import GPT
from litgpt.peft import switched_off
from litgpt.training.batching.packing import pack
from litgpt.training.distill.divergences import DistillationLoss
from litgpt.training.loss import IGNORED, NextToken
from litgpt.training.policy.losses import PolicyLoss
from litgpt.training.policy.objective import ADVANTAGE, OLD, Policy
from litgpt.training.preference.losses import PreferenceLoss
from litgpt.training.preference.objective import Preferences
from tests.training.policy.test_policy import LONGEST, make_answers
from tests.training.policy.test_policy import policy as policy_model
from tests.training.preference.test_objective import make_pairs

pytestmark = pytest.mark.slow
ORACLE = Path(__file__).with_name("trl_oracle.py")


@dataclass
class Case:
    """What TRL is asked, and what it is compared with."""

    asked: dict[str, Any]
    loss: Tensor
    gradients: list[Tensor]
    log_probs: Tensor
    """With the graph that leads to the weights."""
    weights: list[Tensor]
    rtol: float = 1e-9


def trained(model: GPT) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if "lora" in name]


def token_log_probs(model: GPT, ids: Tensor, labels: Tensor) -> Tensor:
    """Of every token but the first, 0 where it isn't learned, `(T - 1,)`."""
    each = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    return each * (labels[1:] != IGNORED)


def padded(rows: list[Tensor], size: int = 24) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, size - len(row))) for row in rows])


def both(model: GPT, sequences: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's and the reference's log-probabilities, and which tokens count, `(B, T)`."""
    ours = padded([token_log_probs(model, *one) for one in sequences])
    with torch.no_grad(), switched_off(model):
        frozen = padded([token_log_probs(model, *one) for one in sequences])
    return ours, frozen, padded([(labels[1:] != IGNORED).long() for _, labels in sequences])


# -------------------------------------------------------------------------------------------------------- preferences


def halves(sample: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    first = int(sample["documents"][0])
    ids, labels = sample["input_ids"], sample["labels"]
    return [(ids[:first], labels[:first]), (ids[first:], labels[first:])]


def of_preferences(loss: PreferenceLoss, asked: Callable[..., dict[str, Any]], rtol: float = 1e-9) -> Case:
    """A step on pairs; `asked` makes TRL's case of log-probabilities and mask, chosen answers first."""
    model, samples = policy_model(), make_pairs(single=loss.kind == "kto")
    for sample in samples:  # the second answer begins a sequence of its own, whose first token is no target
        sample["labels"][int(sample["documents"][0])] = IGNORED
    objective = Preferences(model, loss, switched_off)
    objective.begin(samples)
    part = pack(samples)
    if loss.kind == "kto":
        with torch.no_grad():
            total = objective(part.inputs, part.targets, part.lengths, part.given, estimating=True)
        objective.estimate(float(total), len(samples))
    found = objective(part.inputs, part.targets, part.lengths, part.given) / len(samples)
    weights = trained(model)
    sides = [halves(sample) for sample in samples]
    log_probs, frozen, mask = both(model, [*(side[0] for side in sides), *(side[1] for side in sides)])
    case, leaf = asked(log_probs, frozen, mask)
    gradients = list(torch.autograd.grad(found, weights))
    return Case({**case, "log_probs": leaf.detach()}, found.detach(), gradients, leaf, weights, rtol)


def dpo(beta: float, kinds: list[str], weights: list[float]) -> Callable[..., Any]:
    def asked(log_probs: Tensor, frozen: Tensor, mask: Tensor) -> Any:
        whole = torch.nn.functional.pad(mask, (1, 0))  # the first token of a sequence is no answer's
        return {
            "loss": "dpo",
            "reference": frozen,
            "mask": whole,
            "beta": beta,
            "kinds": kinds,
            "weights": weights,
        }, log_probs

    return asked


def means(loss: str, **numbers: Any) -> Callable[..., Any]:
    def asked(log_probs: Tensor, frozen: Tensor, mask: Tensor) -> Any:
        return {"loss": loss, **numbers}, (log_probs.sum(1) / mask.sum(1)).view(2, -1)

    return asked


def smoothed(log_probs: Tensor, frozen: Tensor, mask: Tensor) -> Any:
    return {"loss": "cpo", "loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.1}, (log_probs - frozen).sum(
        1
    ).view(2, -1)


def kto(log_probs: Tensor, frozen: Tensor, mask: Tensor) -> Any:
    own, others = log_probs.chunk(2)
    ref_own, ref_others = frozen.chunk(2)
    label = torch.tensor([number % 3 > 0 for number in range(len(own))])
    return {
        "loss": "kto",
        "reference": ref_own,
        "mask": torch.nn.functional.pad(mask[: len(own)], (1, 0)),
        "label": label,
        "others": others.sum(1).detach(),
        "reference_others": ref_others.sum(1),
        "beta": 0.1,
        "desirable_weight": 1.5,
        "undesirable_weight": 0.8,
    }, own


PREFERENCES: dict[str, tuple[Any, ...]] = {
    "dpo": (PreferenceLoss("dpo"), dpo(0.1, ["sigmoid"], [1.0])),
    "dpo with sft": (PreferenceLoss("dpo", beta=0.4, sft_weight=0.3), dpo(0.4, ["sigmoid", "sft"], [1.0, 0.3])),
    "dpo by length": (PreferenceLoss("dpo", length_normalization=True), dpo(0.1, ["sigmoid_norm"], [1.0])),
    "dpo smoothed": (PreferenceLoss("dpo", beta=0.3, label_smoothing=0.1), smoothed),
    "ipo": (PreferenceLoss("ipo", beta=0.3), dpo(0.3, ["ipo"], [1.0])),
    "simpo": (
        PreferenceLoss("simpo", simpo_gamma=1.4, label_smoothing=0.1),
        means("cpo", loss_type="simpo", beta=2.0, simpo_gamma=1.4, label_smoothing=0.1),
    ),
    "orpo": (PreferenceLoss("orpo", beta=0.5, sft_weight=0.0), means("orpo", beta=0.5), 1e-5),  # TRL's is in float32
    "kto": (PreferenceLoss("kto", desirable_weight=1.5, undesirable_weight=0.8), kto),
}


# ------------------------------------------------------------------------------------------- answers and next tokens


def of_policy(kind: str, beta: float) -> Case:
    """A step on answers whose ratios are no longer one."""
    loss = PolicyLoss(kind, beta=beta, longest=LONGEST)
    model, samples = policy_model(), make_answers()
    objective = Policy(model, loss, reference=switched_off)
    objective.begin(samples)
    for sample in samples:  # near one, on both sides of both bounds
        ids, labels = sample["input_ids"], sample["labels"]
        kept = labels[1:] != IGNORED
        with torch.no_grad():
            now = token_log_probs(model, ids, labels)[kept]
        sample[OLD] = now + 0.4 * torch.sin(torch.arange(len(now), dtype=torch.float64) + len(ids))
    part = pack(samples)
    total = objective(part.inputs, part.targets, part.lengths, part.given)
    log_probs, frozen, mask = both(model, [(sample["input_ids"], sample["labels"]) for sample in samples])
    old = torch.zeros_like(frozen)
    for row, sample in enumerate(samples):
        old[row, mask[row].bool()] = sample[OLD]
    asked: dict[str, Any] = {"loss": "rloo" if kind == "rloo" else "grpo", "old": old, "mask": mask}
    asked |= {"advantages": torch.stack([sample[ADVANTAGE] for sample in samples])}
    asked |= {"epsilon_low": 1 - loss.bounds[0], "epsilon_high": loss.bounds[1] - 1}
    if kind != "rloo":
        asked |= {"loss_type": kind, "beta": beta, "reference": frozen, "longest": LONGEST}
    found = total / (len(samples) if loss.per_answer else int(mask.sum()))
    weights = trained(model)
    gradients = list(torch.autograd.grad(found, weights))
    return Case({**asked, "log_probs": log_probs.detach()}, found.detach(), gradients, log_probs, weights)


def of_dft() -> Case:
    model, samples = policy_model(), make_answers()
    part = pack(samples)
    log_probs, _, mask = both(model, [(sample["input_ids"], sample["labels"]) for sample in samples])
    found = NextToken(model, dft=True)(part.inputs, part.targets, part.lengths) / int(mask.sum())
    weights = trained(model)
    gradients = list(torch.autograd.grad(found, weights))
    asked = {"loss": "dft", "mask": mask, "log_probs": log_probs.detach()}
    return Case(asked, found.detach(), gradients, log_probs, weights)


def of_divergence(name: str, beta: float) -> Case:
    torch.manual_seed(0)
    student = torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 11, dtype=torch.float64)
    loss = DistillationLoss(name, temperature=1.5, jsd_beta=beta if name == "jsd" else None)
    q, p = ((logits.flatten(0, 1) / 1.5).log_softmax(-1) for logits in (student, teacher))
    found = loss.of_log_probs(q, p).sum()
    gradients = list(torch.autograd.grad(found, [student]))
    asked = {"loss": "jsd", "log_probs": student.detach(), "teacher": teacher, "beta": beta, "temperature": 1.5}
    return Case(asked, found.detach(), gradients, student * 1, [student])


POLICIES = [("grpo", 0.0), ("grpo", 0.3), ("dr_grpo", 0.3), ("dapo", 0.0), ("dapo", 0.3), ("rloo", 0.0)]
"""TRL puts RLOO's divergence into the rewards, so that it has no β in the loss."""
DIVERGENCES = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.3}
CASES: dict[str, Callable[[], Case]] = {
    **{name: partial(of_preferences, *settings) for name, settings in PREFERENCES.items()},
    **{f"{kind}, beta {beta}": partial(of_policy, kind, beta) for kind, beta in POLICIES},
    "dft": of_dft,
    **{name: partial(of_divergence, name, beta) for name, beta in DIVERGENCES.items()},
}


@pytest.fixture(scope="module")
def compared(trl_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("trl")
    ours = {name: case() for name, case in CASES.items()}
    torch.save([case.asked for case in ours.values()], folder / "cases.pt")
    command = [trl_python, "-W", "ignore", str(ORACLE), str(folder / "cases.pt"), str(folder / "results.pt")]
    subprocess.run(
        command, check=True, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    )
    theirs = torch.load(folder / "results.pt", weights_only=True)
    return {name: (case, result) for (name, case), result in zip(ours.items(), theirs, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_trls(name: str, compared: dict[str, tuple[Case, dict[str, Tensor]]]) -> None:
    case, theirs = compared[name]
    torch.testing.assert_close(case.loss.double(), theirs["loss"].double(), rtol=case.rtol, atol=case.rtol)
    expected = torch.autograd.grad(case.log_probs, case.weights, theirs["gradient"])
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in expected)
    for one, other in zip(case.gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=100 * case.rtol, atol=case.rtol)
