"""What a model knows of a text without continuing it: its embedding, and how likely it holds each token.

T: tokens, C: `n_embd`, V: vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from litgpt.deploy.served_models import ServedModel
from litgpt.engine.sampling import MOST_LOGPROBS

ROWS = 64
"""Positions whose scores, `(ROWS, V)`, are in memory at a time."""


def compute(kind: Literal["embed", "score"], served_model: ServedModel, tokens: list[int], **options: Any) -> Any:
    """`embed` or `score`, by name; only while the engine takes no step."""
    with served_model.engine.using_adapters([served_model.adapter]):
        return embed(served_model, tokens, **options) if kind == "embed" else score(served_model, tokens, **options)


def _hidden(served_model: ServedModel, tokens: list[int]) -> Tensor:
    """Hidden states after the last norm, `(T, C)`."""
    idx = torch.tensor([tokens], device=served_model.engine.device)  # (1, T)
    return served_model.engine.model.hidden(idx)[0]


def embed(served_model: ServedModel, tokens: list[int], pooling: Literal["mean", "last"] = "mean") -> list[float]:
    """A text's embedding, of length one.

    Args:
        voice: The model.
        tokens: The text.
        pooling: The mean of the hidden states of all its tokens, or that of the last one.
    """
    hidden = _hidden(served_model, tokens).float()  # (T, C)
    pooled = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
    return torch.nn.functional.normalize(pooled, dim=0).tolist()


def score(served_model: ServedModel, tokens: list[int], top: int = 0) -> list[tuple[float, list[tuple[int, float]]]]:
    """Each token's log-probability after those before it, and the best alternatives'; NaN for the first one."""
    hidden = _hidden(served_model, tokens)
    found: list[tuple[float, list[tuple[int, float]]]] = [(math.nan, [])]
    for start in range(0, len(tokens) - 1, ROWS):
        rows = hidden[start : min(start + ROWS, len(tokens) - 1)]
        following = tokens[start + 1 : start + 1 + len(rows)]
        logprobs = served_model.engine.model.head(rows[None])[0].float().log_softmax(dim=-1)  # (rows, V)
        best, ids = logprobs.topk(min(top, MOST_LOGPROBS, logprobs.size(-1)))
        own = logprobs[torch.arange(len(rows)), torch.tensor(following, device=logprobs.device)]
        for value, row_ids, row in zip(own.tolist(), ids.tolist(), best.tolist(), strict=True):
            found.append((value, list(zip(row_ids, row, strict=True))))
    return found
