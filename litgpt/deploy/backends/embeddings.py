"""What a model knows of a text without continuing it: its embedding, and how likely it holds each token.

To be called between two steps of the engine. T: tokens, C: `n_embd`, V: vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from litgpt.deploy.served_models import ServedModel
from litgpt.engine.sampling import MOST_LOGPROBS, Logprob

ROWS = 64
"""Positions whose scores, `(ROWS, V)`, are in memory at a time."""


def embed(served_model: ServedModel, tokens: list[int], pooling: Literal["mean", "last"] = "mean") -> list[float]:
    """Returns a text's embedding, of length one.

    Args:
        served_model: The model.
        tokens: The text.
        pooling: The mean of the hidden states of all its tokens, or that of the last one.
    """
    with served_model.engine.using_adapters([served_model.adapter]):
        hidden = _hidden(served_model, tokens).float()  # (T, C)
    pooled = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
    return torch.nn.functional.normalize(pooled, dim=0).tolist()


def score(served_model: ServedModel, tokens: list[int], top: int = 0) -> list[Logprob]:
    """Returns each token's log-probability after those before it, and the best alternatives'; NaN for the first one."""
    found = [Logprob(tokens[0], math.nan)]
    with served_model.engine.using_adapters([served_model.adapter]):
        hidden = _hidden(served_model, tokens)
        for start in range(0, len(tokens) - 1, ROWS):
            rows = hidden[start : min(start + ROWS, len(tokens) - 1)]
            following = tokens[start + 1 : start + 1 + len(rows)]
            logprobs = served_model.engine.model.head(rows[None])[0].float().log_softmax(dim=-1)  # (rows, V)
            best, ids = logprobs.topk(min(top, MOST_LOGPROBS, logprobs.size(-1)))
            own = logprobs[torch.arange(len(rows)), torch.tensor(following, device=logprobs.device)]
            for token, value, row_ids, row in zip(following, own.tolist(), ids.tolist(), best.tolist(), strict=True):
                found.append(Logprob(token, value, tuple(zip(row_ids, row, strict=True))))
    return found


def _hidden(served_model: ServedModel, tokens: list[int]) -> Tensor:
    """Hidden states after the last norm, `(T, C)`."""
    idx = torch.tensor([tokens], device=served_model.engine.device)  # (1, T)
    return served_model.engine.model.hidden(idx)[0]
