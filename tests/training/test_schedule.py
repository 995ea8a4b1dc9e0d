"""Limits, progress, and the learning rate that follows."""

from __future__ import annotations

import math

import pytest
import torch

from litgpt.args import TrainArgs
from litgpt.errors import LitGPTError
from litgpt.training.schedule import Counters, GroupRates, RunLimits, Schedule, make_schedule


def train(**changes) -> TrainArgs:
    return TrainArgs(**{"lr_warmup_steps": 10, "global_batch_size": 4, "min_lr": 1e-4, **changes})


def test_rates_are_those_of_nanogpt():
    schedule, notice = make_schedule(train(lr_warmup_steps=100, max_steps=2000), 10_000, 2000, 1e-3)

    def nanogpt(step: int) -> float:
        if step < 100:
            return 1e-3 * (step + 1) / 101
        share = (step - 100) / 1900
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4

    assert notice == ""
    for step in (0, 1, 99, 100, 101, 1000, 1999):
        assert schedule.rate(1e-3, step, step / 2000) == pytest.approx(nanogpt(step), rel=1e-12)


def test_the_first_rate_is_not_zero():
    assert Schedule(0.0, 100, 0.1).rate(1.0, 0, 0.0) > 0


@pytest.mark.parametrize("warmup", [0, None])
def test_without_warm_up_the_first_rate_is_full(warmup):
    schedule, _ = make_schedule(train(lr_warmup_steps=warmup, max_steps=5), 100, 5, 1.0)
    assert schedule.rate(1.0, 0, 0.0) == 1.0


def test_a_warm_up_as_long_as_the_run_is_shortened_and_says_so():
    schedule, notice = make_schedule(train(lr_warmup_steps=100), 100, 50, 1.0)
    assert schedule.warmup_steps == 5
    assert "100 steps" in notice and "run of 50" in notice


def test_a_warm_up_may_be_a_share_of_an_epoch():
    schedule, _ = make_schedule(train(lr_warmup_steps=None, lr_warmup_fraction=0.1), 400, 300, 1.0)
    assert schedule.warmup_steps == 10


def test_a_lowest_rate_above_the_full_one_leaves_it_constant_and_says_so():
    schedule, notice = make_schedule(train(min_lr=1e-3, lr_warmup_steps=0), 100, 50, 1e-5)
    assert schedule.rate(1e-5, 49, 0.98) == 1e-5
    assert "constant" in notice


def test_a_group_with_another_rate_keeps_its_proportion_in_the_warm_up():
    schedule = Schedule(0.0, 3, 0.1)
    assert schedule.rate(2.0, 1, 0.0) == 2 * schedule.rate(1.0, 1, 0.0)


LIMITS = {
    "steps": (dict(max_steps=10), Counters(step=5)),
    "epochs": (dict(epochs=2), Counters(samples=100)),
    "tokens": (dict(max_tokens=1000), Counters(tokens=500)),
    "time": (dict(max_time=60.0), Counters(seconds=30.0)),
    "the nearest": (dict(max_steps=10, epochs=100, max_tokens=10**9), Counters(step=5, samples=20, tokens=100)),
}


@pytest.mark.parametrize("case", LIMITS)
def test_progress_is_the_share_of_the_nearest_limit(case):
    settings, counters = LIMITS[case]
    limits = RunLimits.of(train(**settings), samples_per_epoch=100)
    assert limits.progress(counters) == 0.5
    assert not limits.reached(counters)
    assert limits.progress(Counters()) == 0


def test_time_ends_a_run_without_changing_its_schedule():
    limits = RunLimits.of(train(max_steps=100, max_time=5.0), 100)
    late = Counters(step=10, seconds=6.0)
    assert limits.reached(late)
    assert limits.progress(late) == 0.1


def test_no_limit_is_refused():
    with pytest.raises(LitGPTError, match="when to stop"):
        RunLimits.of(train(), 100)


@pytest.mark.parametrize("settings", [dict(max_steps=0), dict(epochs=0), dict(max_tokens=0), dict(max_time=0.0)])
def test_a_limit_of_zero_is_reached_at_once(settings):
    assert RunLimits.of(train(**settings), 100).reached(Counters())


def test_expected_steps_are_those_of_the_nearest_limit():
    limits = RunLimits.of(train(max_steps=100, epochs=1, max_tokens=450), 10)
    assert limits.steps(samples_per_step=4, tokens_per_sample=100.0) == 2
    assert RunLimits.of(train(max_time=1.0), 10).steps(4, 1.0) is None


def test_time_left_follows_the_pace():
    limits = RunLimits.of(train(max_steps=10, max_time=1000.0), 100)
    assert limits.seconds_left(Counters(step=2, seconds=4.0)) == pytest.approx(16.0)
    assert limits.seconds_left(Counters()) == 1000.0
    assert RunLimits.of(train(max_steps=10), 100).seconds_left(Counters()) is None


SHAPES = {
    "cosine": [1.0, 0.75, 0.5, 0.25, 0.0],
    "linear": [1.0, 2 / 3, 0.5, 1 / 3, 0.0],
    "wsd": [1.0, 1.0, 1.0, 2 / 3, 0.0],
    "constant": [1.0] * 5,
}
"""What is left of the way to the lowest rate after 0, 1/3, 1/2, 2/3 and all of a run."""


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_goes_from_the_full_to_the_lowest_rate(shape):
    decay = {"lr_decay_fraction": 0.5} if shape == "wsd" else {}
    settings = train(max_steps=120, lr_warmup_steps=0, min_lr=0.2, lr_schedule=shape, **decay)
    schedule, notice = make_schedule(settings, 1000, 120, 1.2)
    found = [schedule.rate(1.2, 1, share) for share in (0, 1 / 3, 0.5, 2 / 3, 1)]
    assert found == pytest.approx([0.2 + left for left in SHAPES[shape]])
    assert notice == ""


def test_wsd_falls_in_the_last_fifth():
    schedule, _ = make_schedule(train(max_steps=100, lr_warmup_steps=0, lr_schedule="wsd", min_lr=0.0), 1000, 100, 1.0)
    assert [schedule.rate(1.0, 1, share) for share in (0.1, 0.8, 0.9, 0.95)] == pytest.approx([1, 1, 0.5, 0.25])


def test_the_warm_up_comes_before_every_shape():
    for shape in SHAPES:
        schedule, _ = make_schedule(train(max_steps=100, lr_warmup_steps=3, lr_schedule=shape), 1000, 100, 1.0)
        assert [schedule.rate(1.0, step, step / 100) for step in range(3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(lr_schedule="cosine", lr_decay_fraction=0.1), "lr_decay_fraction is for --train.lr_schedule wsd"),
        (dict(lr_schedule="wsd", lr_decay_fraction=1.1), "lr_decay_fraction must lie between 0 and 1"),
        (dict(label_smoothing=1.5), "label_smoothing must lie between 0 and 1"),
        (dict(z_loss=-1.0), "z_loss must be at least 0"),
        (dict(guard=-1.0), "guard must be at least 0"),
        (dict(activation_checkpointing=-1), "must be off, full or a number above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        train(**settings)


@pytest.mark.parametrize("lowest", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "constant"])
def test_groups_keep_their_share_of_the_rate_at_every_step(shape, lowest):
    """LoRA+'s ratio, or AdamW's rate beside Muon's, is no promise about the first steps alone."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, (1e-3, 1.6e-2, 5e-4), strict=True)]
    rates = GroupRates.of(torch.optim.AdamW(groups, lr=1e-3))
    assert rates.full == 1e-3 and rates.factors == pytest.approx((1, 16, 0.5))
    schedule = Schedule(lowest, 5, 0.05, shape)
    plain = [schedule.rate(rates.full, step, step / 100) for step in range(101)]
    assert min(plain[5:]) >= min(lowest, rates.full)  # the floor is the plain rate's


def test_an_optimizer_of_rate_zero_has_equal_groups():
    weight = torch.nn.Parameter(torch.zeros(1))
    assert GroupRates.of(torch.optim.SGD([weight], lr=0.0)) == GroupRates(0.0, (1.0,))
