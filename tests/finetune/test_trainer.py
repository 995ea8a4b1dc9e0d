"""`Trainer`'s verbs: what a loop of one's own computes is what the commands compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt import Trainer
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError

ROWS = [{"instruction": "Name the cat.", "output": "cat"}, {"instruction": "Name the dog.", "output": "the dog"}]
SETTINGS: dict[str, Any] = dict(
    precision="32-true", optimizer={"class_path": "AdamW", "init_args": {"lr": 0.01}}, micro_batch_size=2
)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def test_the_verbs_train_sample_and_go_on_exactly(lit_folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(lit_folder, lora_r=4, **SETTINGS)
    losses = []
    for _ in range(3):
        losses.append(trainer.forward_backward(ROWS)["loss"])
        assert trainer.optim_step(lr=0.02)["grad_norm"] > 0
    assert losses[-1] < losses[0] and trainer.steps == 3
    answers = trainer.sample(["Name the owl."], max_new_tokens=5, n=4, seed=3)
    again = trainer.sample(["Name the owl."], max_new_tokens=5, n=4, seed=3)
    assert answers == again and len({tuple(answer.ids) for answer in answers}) > 1
    learned = [answer.sample(number - 1.5) for number, answer in enumerate(answers)]
    found = trainer.forward_backward(learned, loss="grpo", clip=0.1)
    assert found["clipped"] == 0 and abs(found["loss"]) < 1  # drawn just now: ratios are one
    trainer.optim_step()
    trainer.save_state(tmp_path / "state")
    other = Trainer(lit_folder, lora_r=4, **SETTINGS)
    other.load_state(tmp_path / "state")
    for one in (trainer, other):
        one.forward_backward(ROWS)
    assert all(torch.equal(a, b) for a, b in zip(gradients(trainer), gradients(other), strict=True))
    for one in (trainer, other):
        one.optim_step()
    assert trainer.forward_backward(ROWS) == other.forward_backward(ROWS) and other.steps == 5
    saved = InferenceModel.load(tmp_path / "state", "cpu", "32-true")  # as every command opens it
    assert saved.model is not None


def test_gradients_add_up_until_a_step(lit_folder: Path) -> None:
    trainer = Trainer(lit_folder, method="full", **SETTINGS)
    trainer.forward_backward(ROWS)
    once = gradients(trainer)
    trainer.forward_backward(ROWS)
    for a, b in zip(once, gradients(trainer), strict=True):
        torch.testing.assert_close(2 * a, b, rtol=1e-4, atol=1e-6)
    ids = torch.tensor([5, 6, 7])
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.optim_step()
    assert not torch.equal(before, trainer.model.lm_head.weight)
    for call, complaint in (
        (trainer.optim_step, "no gradients"),
        (lambda: trainer.forward_backward([]), "nothing to learn"),
        (lambda: trainer.forward_backward(ROWS, loss="mse"), "no loss 'mse'"),
        (lambda: trainer.forward_backward([{"input_ids": ids, "labels": ids}], loss="grpo"), "needs an `advantage`"),
        (lambda: trainer.forward_backward([{"input_ids": ids, "labels": ids[1:]}]), "3 tokens and 2 labels"),
        (lambda: Trainer(lit_folder, method="magic"), "method is 'magic'"),
        (lambda: Trainer(lit_folder, rank=4), "no setting 'rank'"),
    ):
        with pytest.raises(LitGPTError, match=complaint):
            call()
