"""A tokenizer whose ids lie where the model is."""

from __future__ import annotations

import torch
from torch import Tensor

from litgpt.tokenizer.tokenizer import Tokenizer


class Preprocessor:
    """Text to token ids and back, on the model's device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> None:
        self.tokenizer = tokenizer
        self.device = torch.device(device)

    def encode(self, text: str) -> Tensor:
        """The ids of a text, `(T,)` int32."""
        return self.tokenizer.encode(text, device=self.device)

    def decode(self, token_ids: Tensor) -> str:
        """The text of some ids, `(T,)`."""
        return self.tokenizer.decode(token_ids)
