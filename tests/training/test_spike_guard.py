"""Which steps the guard skips."""

from __future__ import annotations

from litgpt.training import spike_guard as guard
from litgpt.training.schedule import Counters
from litgpt.training.spike_guard import skip_reason


def test_what_is_not_finite_is_skipped():
    counters = Counters()
    assert skip_reason(counters, 0, 2.0, 1.0) == ""
    assert skip_reason(counters, 0, float("nan"), 1.0) == "its loss is nan"
    assert skip_reason(counters, 0, 2.0, float("inf")) == "its gradient norm is inf"
    assert skip_reason(counters, 0, 2.0, 1e30) == ""
    assert (counters.losses, counters.norms) == ([2.0, 2.0, 2.0], [1.0, 1.0, 1e30])


def test_a_spike_is_skipped_once_there_is_a_median():
    counters = Counters()
    assert all(skip_reason(counters, 5.0, 2.0, norm) == "" for norm in [100.0] + [1.0] * (guard.ENOUGH - 1))
    assert skip_reason(counters, 5.0, 2.0, 4.9) == ""
    assert skip_reason(counters, 5.0, 2.0, 5.1) == "its gradient norm of 5.1 is over 5 times the usual 1"
    assert "its loss of 11 is over 5 times the usual 2" in skip_reason(counters, 5.0, 11.0, 1.0)


def test_what_lasts_is_no_spike_for_long():
    counters = Counters()
    found = [skip_reason(counters, 5.0, 2.0, norm) for norm in [1.0] * 20 + [100.0] * 30]
    assert found[20] and not found[-1]
    for _ in range(2 * guard.WINDOW):
        skip_reason(counters, 5.0, 2.0, 1.0)
    assert len(counters.losses) == len(counters.norms) == guard.WINDOW
