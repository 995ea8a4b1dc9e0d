"""Random weights to start pretraining from.

C: `n_embd`, L: `n_layer`. Output projections are those whose result is added to the residual stream: `attn.proj`,
`mlp.proj`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from litgpt.errors import LitGPTError, quoted
from litgpt.model.gpt import GPT
from litgpt.model.sharding import empty, whole_parameters


@torch.no_grad()
def initialize(model: GPT) -> None:
    """Gives `model` the random weights its family starts from, drawn from torch's global generator.

    `gpt2`: N(0, 0.02) for matrices and embeddings, output projections divided by the root of 2L (Radford et al. 2019,
        and nanoGPT);
    `neox`: N(0, sqrt(2 / 5C)), output projections N(0, 1 / (L sqrt(C))) (GPT-NeoX-20B,
        https://arxiv.org/abs/2204.06745).
    Biases are zero, norms one. A model that is shared out over ranks gets the same numbers, drawn on every rank.
    """
    config = model.config
    schemes = {
        "gpt2": (0.02, 0.02 / math.sqrt(2 * config.n_layer)),
        "neox": (math.sqrt(2 / 5 / config.n_embd), 1 / math.sqrt(config.n_embd) / config.n_layer),
    }
    if config.family.init not in schemes:
        raise LitGPTError(
            f"The family {config.family.name} starts from {quoted(config.family.init)}, which is unknown."
        )
    spread, output_spread = schemes[config.family.init]
    for name, module in model.named_modules():
        with whole_parameters(module, empty, keep=True):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=output_spread if name.endswith(".proj") else spread)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            else:
                _reset_own(module)


def _reset_own(module: nn.Module) -> None:
    """Norms, and other modules with parameters of their own, to where they start."""
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
        return
    for name, parameter in module.named_parameters(recurse=False):
        zero = name == "bias" or getattr(module, "unit_offset", False)
        nn.init.zeros_(parameter) if zero else nn.init.ones_(parameter)
