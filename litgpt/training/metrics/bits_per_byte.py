"""Validation in bits per byte of text, which models with other tokenizers can be compared by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from litgpt.args import TrainArgs
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.training.loss import IGNORED, NextToken


class TextLoss(NextToken):
    """The losses of next tokens, and in evaluation how many bytes these tokens stand for.

    Special tokens stand for none, but the model's bits for them count: what ends a document has to be coded too.

    Args:
        model: What is trained.
        train: With the terms of its loss.
        tokenizer: That the data was made with.
    """

    def __init__(self, model: GPT, train: TrainArgs, tokenizer: Tokenizer) -> None:
        super().__init__(model, train.z_loss, train.label_smoothing)
        self.token_bytes = token_bytes(tokenizer, model.config.padded_vocab_size or 0)
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Nats and bytes of what was evaluated since they were asked for."""

    def forward(
        self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None, given: Tensor | None = None
    ) -> Tensor:
        """As `NextToken`."""
        loss = super().forward(inputs, targets, lengths, given)
        if not self.training:
            self.token_bytes = self.token_bytes.to(targets.device)
            read = (self.token_bytes[targets.clamp(min=0)] * (targets != IGNORED)).sum()
            wide = torch.float32 if loss.device.type == "mps" else torch.float64
            self.sums = self.sums.to(loss.device, wide) + torch.stack((loss.detach().to(wide), read.to(wide)))
        return loss

    def measured(self) -> Tensor:
        """Nats and bytes, `(2,)`."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """The bits per byte, if anything was read."""
        nats, count = sums
        return {"bits_per_byte": nats / count / math.log(2)} if count else {}


def token_bytes(tokenizer: Tokenizer, size: int) -> Tensor:
    """How many bytes of text each of `size` ids stands for, `(size,)`, int64; special tokens and those that are not the
    tokenizer's stand for none."""
    known = range(min(size, len(tokenizer)))
    counts = [len(tokenizer.token_bytes(token, skip_special_tokens=True)) for token in known]
    return torch.tensor(counts + [0] * (size - len(counts)))
