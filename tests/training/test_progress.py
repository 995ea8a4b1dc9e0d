"""What is shown while training."""

from __future__ import annotations

import pytest
import torch

from litgpt.training.progress import Screen, duration, flops_per_token, peak_flops
from litgpt.training.schedule import Counters, Limits
from tests.training.runs import tiny_model


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (185.4, "3:05"), (3723, "1:02:03"), (2 * 86400 + 3723, "2 d 1:02:03")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_a_line_has_step_loss_speed_and_time_left():
    said: list[str] = []
    limits = Limits(max_steps=10, max_samples=None, max_tokens=None, max_time=None)
    screen = Screen(said.append, limits)
    screen.step(Counters(step=5, seconds=65.0), 0.5, 1.23456, 3e-4, 12345.6)
    assert said == ["step 5/10 | epoch 0.50 | loss 1.2346 | lr 3.00e-04 | 12,346 tokens/s | 1:05 left"]


def test_floating_point_operations_are_six_for_each_weight_of_a_product_and_attention():
    model = tiny_model()
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() == 2)
    weights -= model.transformer.wte.weight.numel()
    assert flops_per_token(model, 10) == 6 * weights + 12 * 2 * 16 * 10


def test_the_peak_of_a_cpu_is_unknown():
    assert peak_flops(torch.device("cpu"), torch.float32) is None
