"""Which steps to skip: those whose loss or gradient norm is not finite, or far above what it was."""

from __future__ import annotations

import math
from statistics import median

from litgpt.training.schedule import Counters

WINDOW = 100
"""Steps whose losses and gradient norms are remembered."""

ENOUGH = 10
"""Steps from which on there is a median to go by."""


def skip_reason(counters: Counters, factor: float, loss: float, norm: float) -> str:
    """Why a step must be skipped; empty: it need not be. Remembers both values in `counters`.

    Args:
        counters: Of the run.
        factor: A spike is more than so many times the median of the last steps; 0: nothing is.
        loss: Mean loss of the step.
        norm: Norm of its gradients.
    """
    found = []
    for what, value, before in (("loss", loss, counters.losses), ("gradient norm", norm, counters.norms)):
        if not math.isfinite(value):
            found.append(f"its {what} is {value}")
            continue
        usual = median(before) if len(before) >= ENOUGH else math.inf
        if factor and value > factor * usual:
            found.append(f"its {what} of {value:.3g} is over {factor:g} times the usual {usual:.3g}")
        before.append(value)  # also that of a spike: what lasts is no spike, and must not stop the training for good
        del before[:-WINDOW]
    return " and ".join(found)
