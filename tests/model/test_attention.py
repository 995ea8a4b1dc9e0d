"""What a query may look at, and in which precision it looks."""

from __future__ import annotations

import pytest
import torch

from litgpt.config import Config
from litgpt.model.attention import BF16_MIN_KEYS, AttentionContext, CausalSelfAttention, attention_mask, query_factors
from litgpt.model.rope import RopeTable

LLAMA = dict(
    n_layer=1, n_embd=32, n_head=4, n_query_groups=2, bias=False, mlp_class_name="LLaMAMLP", intermediate_size=8
)


def test_a_chunked_window_ends_at_its_block():
    mask = attention_mask(torch.arange(5), end=5, window=3, chunked=True)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_rows_at_different_positions_have_blocks_of_their_own():
    mask = attention_mask(torch.tensor([[4], [2]]), end=5, window=3, chunked=True)
    assert mask[:, 0, 0].int().tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]


def test_queries_grow_at_every_multiple_of_the_floor():
    tuning = dict(scale=0.1, floor=4, offset=1, unturned_only=True)
    factors = query_factors(Config(**LLAMA, query_tuning=tuning), torch.arange(8))
    steps = 1 + 0.1 * torch.tensor([0, 0, 0, 1, 1, 1, 1, 2]).log1p()
    torch.testing.assert_close(factors, steps[:, None])


@pytest.mark.parametrize("lengths", [(5, 1, 40, 17), (BF16_MIN_KEYS + 3, 9)])
def test_gradients_of_packed_documents_in_bfloat16_are_near_those_of_float32(lengths):
    config = Config(**LLAMA)
    torch.manual_seed(0)
    exact = CausalSelfAttention(config, 0)
    rounded = CausalSelfAttention(config, 0).bfloat16()
    rounded.load_state_dict(exact.state_dict())
    x = torch.randn(1, sum(lengths), 32)
    gradients = []
    for attention in (exact, rounded):
        cos, sin = RopeTable(config).cos_sin(max(lengths), x.device, max(lengths))
        positions = torch.cat([torch.arange(length) for length in lengths])
        inputs = x.to(attention.proj.weight.dtype, copy=True).requires_grad_()
        y = attention(inputs, AttentionContext(((cos[positions], sin[positions]),), {}, lengths))
        assert y.dtype == inputs.dtype
        y.float().square().sum().backward()
        gradients.append(inputs.grad.float())
    assert (gradients[0] - gradients[1]).abs().max() < 0.03 * gradients[0].abs().max()
