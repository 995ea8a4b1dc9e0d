"""Random weights to start from."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.runs import tiny_model


@pytest.mark.parametrize("learned_positions", [False, True])
def test_spreads_are_those_of_the_family(learned_positions):
    structure = dict(mlp_class_name="GptNeoxMLP", norm_class_name="LayerNorm", bias=True)
    model = tiny_model(n_embd=128, n_layer=3, learned_positions=learned_positions, intermediate_size=512, **structure)
    scheme = model.config.family.init
    assert scheme == ("gpt2" if learned_positions else "neox")
    spread, output = {
        "gpt2": (0.02, 0.02 / math.sqrt(6)),
        "neox": (math.sqrt(2 / 5 / 128), 1 / math.sqrt(128) / 3),
    }[scheme]
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            wanted = output if name.endswith("proj.weight") else spread
            assert parameter.std().item() == pytest.approx(wanted, rel=0.1), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name


def test_a_norm_around_one_starts_at_zero():
    model = tiny_model(norm_unit_offset=True)
    assert not model.transformer.ln_f.weight.any()


def test_the_seed_decides():
    assert torch.equal(tiny_model(1).lm_head.weight, tiny_model(1).lm_head.weight)
    assert not torch.equal(tiny_model(1).lm_head.weight, tiny_model(2).lm_head.weight)
