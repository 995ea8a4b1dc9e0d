"""Dropout in training: GPT-2's places, unbiased, drawn again where activations are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from litgpt.checkpoint.reader import load_model
from litgpt.model.attention import Attention
from litgpt.training.blocks import checkpoint_blocks, drop_out, restore, scaled_drop
from litgpt.training.loop import fit
from tests.tiny import hf_model
from tests.training.runs import column, make_run, tiny_model


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_it_is_where_gpt2_has_it(tmp_path):
    theirs = hf_model("gpt2")
    theirs.save_pretrained(tmp_path)
    theirs.transformer.drop = Half()
    for block in theirs.transformer.h:
        block.attn.resid_dropout, block.mlp.dropout = Half(), Half()
    ours = load_model(tmp_path).train()
    tokens = torch.arange(24).view(2, 12)
    drop_out(ours, 0.0, lambda x, share: x / 2)  # no attention weight is left out
    torch.testing.assert_close(ours(tokens), theirs.eval()(tokens).logits, rtol=1e-4, atol=1e-5)
    plain = ours.eval()(tokens)
    restore(ours)
    assert torch.equal(plain, ours(tokens))


@pytest.mark.parametrize("lengths", [None, (5, 3)])
def test_attention_is_right_on_average(lengths):
    model = tiny_model()
    attention = model.transformer.h[0].attn
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 8, 8), torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    context = model.context(torch.arange(8), 8, lengths)
    plain = Attention.attend(attention, q, k, v, context)
    drop_out(model, 0.3, scaled_drop)
    draws = torch.stack([attention.train().attend(q, k, v, context) for _ in range(4000)])
    assert draws.std(0).max() > 0.1
    assert ((draws.mean(0) - plain).abs() < 5 * draws.std(0) / 4000**0.5 + 1e-5).all()
    assert torch.equal(attention.eval().attend(q, k, v, context), plain)


def test_activations_that_are_computed_again_drop_the_same():
    gradients = []
    for again in (False, True):
        model = tiny_model().train()
        drop_out(model, 0.3, scaled_drop)
        if again:
            checkpoint_blocks(model, 1)
        torch.manual_seed(1)
        model(torch.arange(12)[None]).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_run_drops_out_in_training_alone_and_resumes_exactly(tmp_path, no_picture):
    settings = dict(dropout=0.3, max_steps=6, save_interval=3)
    fit(make_run(tmp_path / "plain", train={**settings, "dropout": 0.0}))
    fit(make_run(tmp_path / "whole", train=settings))
    fit(make_run(tmp_path / "resumed", train=settings, resume=tmp_path / "whole" / "step-000003"))
    assert column(tmp_path / "whole", "loss") == column(tmp_path / "resumed", "loss")
    assert column(tmp_path / "whole", "loss") != column(tmp_path / "plain", "loss")
