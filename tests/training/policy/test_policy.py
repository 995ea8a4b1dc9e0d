"""Advantages, ratios, losses and gradients against a plain reference in float64."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from litgpt.errors import UsageError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import switched_off
from litgpt.training.batching.packing import pack, pad
from litgpt.training.loss import IGNORED
from litgpt.training.policy.losses import KINDS, PolicyLoss
from litgpt.training.policy.objective import ADVANTAGE, NOW, OLD, SAMPLED, Policy
from tests.training.runs import VOCABULARY, tiny_model

LONGEST = 11


def plain_advantages(kind: str, rewards: Tensor) -> Tensor:
    rows = []
    for group in rewards:
        for at, reward in enumerate(group):
            others = torch.cat([group[:at], group[at + 1 :]])
            if kind == "rloo":
                rows.append(reward - others.mean())
            elif kind == "dr_grpo":
                rows.append(reward - group.mean())
            else:
                rows.append((reward - group.mean()) / (group.std() + 1e-4))
    return torch.stack(rows).view_as(rewards)


def plain_loss(loss: PolicyLoss, answers: list[dict[str, Tensor]]) -> Tensor:
    """The loss of a step, answer by answer and token by token, as the papers and TRL write it."""
    low, high = (
        loss.clip or 0.2,
        loss.clip_high or (0.28 if loss.kind == "dapo" and not loss.clip else loss.clip or 0.2),
    )
    per_answer, tokens = [], 0
    for answer in answers:
        ratio = torch.exp(answer["new"] - answer["old"])
        A = answer["advantage"]
        if loss.kind == "rloo":
            ratio = ratio.prod()
        each = -torch.min(ratio * A, torch.clamp(ratio, 1 - low, 1 + high) * A)
        kl = torch.exp(answer["ref"] - answer["new"]) - (answer["ref"] - answer["new"]) - 1
        held = loss.beta * kl
        tokens += len(answer["new"])
        if loss.kind == "rloo":
            per_answer.append(each + held.sum())
        elif loss.kind == "grpo":
            per_answer.append((each + held).mean() if len(held) else each.sum())
        elif loss.kind == "dr_grpo":
            per_answer.append((each + held).sum() / LONGEST)
        else:
            per_answer.append((each + held).sum())
    total = torch.stack(per_answer).sum()
    return total / (tokens if loss.kind == "dapo" else len(answers))


def policy() -> GPT:
    model = tiny_model()
    LoRA(r=2, mlp=True, dropout=0.0).attach(model)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def make_answers(count: int = 6) -> list[dict[str, Any]]:
    """Answers of several lengths; in one the middle is a tool's, and one was cut off and is not learned at all."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(count):
        size = int(torch.randint(6, 14, (), generator=generator))
        ids = torch.randint(VOCABULARY, (size,), generator=generator)
        labels = ids.clone()
        labels[:3] = IGNORED
        if number == 1:
            labels[4] = IGNORED
        if number == 2:
            labels[:] = IGNORED
        n = int((labels != IGNORED).sum())
        old = -4 + torch.randn(n, generator=generator, dtype=torch.float64)
        samples.append(
            {
                "input_ids": ids,
                "labels": labels,
                "given": torch.tensor([float(number)]),
                ADVANTAGE: torch.randn((), generator=generator, dtype=torch.float64),
                OLD: old,
                SAMPLED: old,
            }
        )
    return samples


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_compare_the_answers_of_a_group(kind: str) -> None:
    rewards = torch.randn(3, 4, dtype=torch.float64)
    rewards[1] = 0.5  # all alike: nothing to learn
    found = PolicyLoss(kind).advantages(rewards)
    torch.testing.assert_close(found, plain_advantages(kind, rewards), rtol=1e-12, atol=1e-12)
    assert float(found[1].abs().max()) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_formula_however_it_is_packed(kind: str, temperature: float) -> None:
    loss = PolicyLoss(kind, beta=0.3, longest=LONGEST)
    model, samples = policy(), make_answers()
    trained = [p for name, p in model.named_parameters() if "lora" in name]

    def log_probs(sample: dict[str, Tensor]) -> Tensor:
        ids, labels = sample["input_ids"], sample["labels"][1:]
        each = (model(ids[None, :-1])[0] / temperature).log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        return each[labels != IGNORED]

    answers = []
    for sample in samples:
        with torch.no_grad(), switched_off(model):
            ref = log_probs(sample)
        answers.append({"new": log_probs(sample), "old": sample[OLD], "ref": ref, "advantage": sample[ADVANTAGE]})
    expected = plain_loss(loss, answers)
    gradients = torch.autograd.grad(expected, trained)
    objective = Policy(model, loss, temperature, reference=switched_off)
    for cut in ([samples], [samples[:2], samples[4:], samples[2:4]]):
        for make in (pack, pad):
            objective.begin(samples)
            total = torch.zeros((), dtype=torch.float64)
            for part in map(make, cut):
                total = total + objective(part.inputs, part.targets, part.lengths, part.given)
            tokens = sum(len(answer["new"]) for answer in answers)
            found = total / (len(samples) if loss.per_answer else tokens)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
            for one, other in zip(torch.autograd.grad(found, trained), gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_fresh_answers_have_ratios_of_one_and_the_gradient_of_the_policy() -> None:
    model, samples = policy(), make_answers()
    trained = [p for name, p in model.named_parameters() if "lora" in name]
    for sample in samples:
        del sample[OLD]
    objective = Policy(model, PolicyLoss("dapo"))
    objective.begin(samples)
    part = pack(samples)
    found = torch.autograd.grad(objective(part.inputs, part.targets, part.lengths, part.given), trained)
    assert objective.metrics(objective.measured().tolist())["clipped"] == 0  # type: ignore[union-attr]
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        ids, kept = sample["input_ids"], sample["labels"][1:] != IGNORED
        each = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)[kept]
        total = total - sample[ADVANTAGE] * each.sum()
    for one, other in zip(found, torch.autograd.grad(total, trained), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_values_count_with_the_gradients_of_the_pass(kind: str) -> None:
    loss, model, samples = PolicyLoss(kind, beta=0.3, longest=LONGEST), policy(), make_answers()
    trained = [p for name, p in model.named_parameters() if "lora" in name]
    answers, each = [], []
    for sample in samples:
        ids, kept = sample["input_ids"], sample["labels"][1:] != IGNORED
        both = []
        for off in (nullcontext, partial(switched_off, model)):
            with off():
                both.append(model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)[kept])
        sample[NOW] = sample[OLD] + 0.3 * torch.sin(torch.arange(len(both[0]), dtype=torch.float64))
        now = sample[NOW].clone().requires_grad_(True)
        answers.append({"new": now, "old": sample[OLD], "ref": both[1].detach(), "advantage": sample[ADVANTAGE]})
        each.append(both[0])
    expected = plain_loss(loss, answers)
    by_value = torch.autograd.grad(expected, [answer["new"] for answer in answers], allow_unused=True)
    some = [(one, by) for one, by in zip(each, by_value, strict=True) if by is not None and len(one)]
    gradients = torch.autograd.grad([one for one, _ in some], trained, [by for _, by in some])
    objective = Policy(model, loss, reference=switched_off)
    objective.begin(samples)
    part = pack(samples)
    count = len(samples) if loss.per_answer else sum(map(len, each))
    found = objective(part.inputs, part.targets, part.lengths, part.given) / count
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(found, trained), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_dapo_lets_answers_become_likelier_by_more() -> None:
    assert PolicyLoss("grpo").bounds == (0.8, 1.2) and PolicyLoss("dapo").bounds == (0.8, 1.28)
    assert PolicyLoss("dapo", clip=0.1).bounds == (0.9, 1.1)
    assert PolicyLoss("grpo", clip_high=0.3).bounds == (0.8, 1.3)


@pytest.mark.parametrize("settings", [{"clip": 0.0}, {"clip_high": -1.0}, {"beta": -0.1}, {"beta": float("inf")}])
def test_what_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        PolicyLoss(**settings)
