"""Experts computed together equal experts computed one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from litgpt.config import Config
from litgpt.model import GPT
from litgpt.model.moe import GroupedTopkRouter, LLaMAMoE, grouped_linear

SIZES = dict(n_embd=16, n_head=2, n_layer=2, padded_vocab_size=32, block_size=16, mlp_class_name="LLaMAMoE", bias=False)


def mixture(width: int = 24, n_expert: int = 5, **other) -> LLaMAMoE:
    torch.manual_seed(0)
    return LLaMAMoE(Config(**SIZES, intermediate_size=width, n_expert=n_expert, n_expert_per_token=2, **other))


def one_by_one(moe: LLaMAMoE, x: torch.Tensor) -> torch.Tensor:
    """The slow obvious way: every expert on every token, most of it weighed with zero."""
    shares = moe.gate(x).float().softmax(-1)
    best = shares.topk(2, dim=-1)
    weights = torch.zeros_like(shares).scatter(-1, best.indices, best.values)
    if not moe.config.router_softmax_over_all:
        weights = weights / weights.sum(-1, keepdim=True)
    e = moe.experts
    each = [(F.silu(x @ g.T) * (x @ u.T)) @ d.T for g, u, d in zip(e.fc_1, e.fc_2, e.proj, strict=True)]
    return sum(weights[..., i : i + 1].to(x.dtype) * y for i, y in enumerate(each))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [24, 23], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("share", [False, True])
def test_outputs_and_gradients(dtype, width, share):
    moe = mixture(width, router_softmax_over_all=share).to(dtype)
    x = torch.randn(2, 7, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(2, 7, 16, dtype=dtype)
    inputs = [x, *moe.parameters()]
    ours, theirs = moe(x), one_by_one(moe, x)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_groups_without_rows_cost_nothing_and_change_nothing():
    x, weight = torch.randn(4, 8), torch.randn(3, 12, 8)
    ends = torch.tensor([0, 4, 4], dtype=torch.int32)
    torch.testing.assert_close(grouped_linear(x, weight, ends), x @ weight[1].T)


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_dict_names_experts_one_by_one(assign):
    moe, other = mixture(), mixture()
    state = {name: torch.randn_like(tensor) for name, tensor in moe.state_dict().items()}
    assert "experts.4.fc_1.weight" in state and state["experts.4.fc_1.weight"].shape == (24, 16)
    moe.load_state_dict(state, assign=assign)
    assert torch.equal(moe.experts.proj[3], state["experts.3.proj.weight"])
    assert not torch.equal(other.experts.proj[3], moe.experts.proj[3])


def test_a_missing_expert_is_named():
    moe = mixture()
    state = moe.state_dict()
    del state["experts.2.fc_2.weight"]
    with pytest.raises(RuntimeError, match=r"experts\.2\.fc_2\.weight"):
        moe.load_state_dict(state)


def test_a_mixture_is_built_on_meta():
    with torch.device("meta"):
        model = GPT(Config(**SIZES, intermediate_size=24, n_expert=4, n_expert_per_token=2))
    assert all(parameter.is_meta for parameter in model.parameters())


GROUPED = dict(n_expert_groups=2, n_topk_groups=1, n_topk_scores_per_group=2, moe_intermediate_size=24)


def test_what_balances_the_experts_is_never_rounded():
    model = GPT(Config(**SIZES, intermediate_size=24, n_expert=4, n_expert_per_token=2, **GROUPED))
    bias = model.transformer.h[0].mlp.gate.e_score_correction_bias
    bias.copy_(torch.linspace(8.99, 9.01, 4))
    rounded = model.bfloat16().transformer.h[0].mlp.gate
    assert rounded.weight.dtype == torch.bfloat16
    assert torch.equal(rounded.e_score_correction_bias, bias)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_a_router_of_groups_computes_in_float32_under_autocast_too(scores):
    groups = dict(n_expert_groups=2, n_topk_groups=1, n_topk_scores_per_group=1, router_scores=scores)
    router = GroupedTopkRouter(Config(**SIZES, intermediate_size=24, n_expert=6, n_expert_per_token=2, **groups))
    tokens = torch.randn(9, 16)
    weights, expert_ids = router(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        again, ids_again = router(tokens)
    assert torch.equal(ids_again, expert_ids) and torch.equal(again, weights)
