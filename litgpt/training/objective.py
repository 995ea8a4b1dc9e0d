"""What training minimises: a model and its loss as one module, so that every strategy wraps a single forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from litgpt.model import GPT
from litgpt.quantize import QuantizedLinear, dense_weight
from litgpt.training.loss import Buffers, Terms, head_cross_entropy, is_plain, linear_cross_entropy


class NextToken(nn.Module):
    """The sum of the next-token losses of one micro-batch."""

    def __init__(self, model: GPT, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.terms = Terms(model.config.final_logit_softcapping, z_loss, label_smoothing)
        """In training; in evaluation mode the loss is the plain one."""
        self.scratch = Buffers()

    def forward(self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32.

        Logits are never held for all tokens; see `litgpt.training.loss`.
        """
        model = self.model
        hidden = model.hidden(inputs, lengths=lengths).flatten(0, 1)  # (B·T, C)
        targets = targets.flatten()
        head = model.lm_head
        terms = self.terms if self.training else self.terms.plain
        if is_plain(head) or isinstance(head, QuantizedLinear):
            bias: Tensor | None = head.bias
            divisor = model.config.logits_divisor
            if divisor != 1:
                hidden, bias = hidden / divisor, None if bias is None else bias / divisor
            return linear_cross_entropy(hidden, dense_weight(head), targets, bias, terms, self.scratch)
        assert model.config.padded_vocab_size is not None
        return head_cross_entropy(model.head, hidden, targets, model.config.padded_vocab_size, terms)
