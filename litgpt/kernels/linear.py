"""Linear layers on the CPU in less time than torch's own, in the way that suits their numbers and the processor."""

from __future__ import annotations

from torch import nn

from litgpt.kernels import narrow, onednn, wide


def use_fast_linear(model: nn.Module, headroom: int, tokens: int = wide.FEW + 1) -> None:
    """Lets the plain linear layers of a model compute the faster way where one applies, and as before elsewhere.

    Args:
        model: Stays what it is to all who train or save it.
        headroom: Bytes that copies of weights, stored to be read faster, may take; for each way of it.
        tokens: How many are expected at a time.
    """
    narrow.use_fast_linear(model, headroom)
    onednn.use_fast_linear(model)
    wide.rearrange(model, tokens, headroom)
