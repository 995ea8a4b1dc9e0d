"""The gated delta rule by chunks is the rule token by token, and a layer of it forgets between documents."""

from __future__ import annotations

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.cache import KVCache, Span
from litgpt.model.delta_net import CHUNK, GatedDeltaNet, channel_delta_rule, gated_delta_rule, l2_norm
from tests.engine.oracle import LLAMA, SIZES

SMALL = dict(n_key_heads=2, n_value_heads=4, key_size=6, value_size=10, kernel_size=3)
HYBRID = dict(
    **{**SIZES, "n_layer": 4, "block_size": 256},
    **LLAMA,
    n_query_groups=2,
    attention_gate=True,
    linear_attention=SMALL,
    linear_attention_indices=[1, 1, 0, 1],
)


def inputs(T, dtype=torch.float64):
    """Queries, keys, values, logarithms of what is kept, what is corrected, a first memory; two rows, three heads."""
    generator = torch.Generator().manual_seed(T)
    q, k = (torch.randn(2, 3, T, 6, generator=generator, dtype=dtype) for _ in range(2))
    v = torch.randn(2, 3, T, 10, generator=generator, dtype=dtype)
    kept, corrected = torch.rand(2, 2, 3, T, generator=generator, dtype=dtype)
    memory = torch.randn(2, 3, 6, 10, generator=generator, dtype=dtype)
    return [q, k / k.norm(dim=-1, keepdim=True), v, -4 * kept, corrected, memory]


def token_by_token(q, k, v, kept, corrected, memory):
    """The definition."""
    found = []
    for t in range(q.size(2)):
        memory = memory * kept[:, :, t].exp()[..., None, None]
        there = torch.einsum("bnpd,bnp->bnd", memory, k[:, :, t])
        memory = memory + torch.einsum("bnp,bnd->bnpd", k[:, :, t], (v[:, :, t] - there) * corrected[:, :, t, None])
        found.append(torch.einsum("bnpd,bnp->bnd", memory, q[:, :, t]))
    return torch.stack(found, dim=2), memory


@pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_chunks_compute_what_tokens_one_by_one_do(T):
    for ours, exact in zip(gated_delta_rule(*inputs(T)), token_by_token(*inputs(T)), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_a_memory_that_is_forgotten_at_once_is_no_infinity():
    q, k, v, kept, corrected, memory = inputs(CHUNK + 3, torch.float32)
    found, memory = gated_delta_rule(q, k, v, kept - 200, corrected, memory)
    assert found.isfinite().all() and memory.isfinite().all()


def test_gradients_by_chunks_are_those_token_by_token():
    gradients = []
    for rule in (gated_delta_rule, token_by_token):
        parts = [part.requires_grad_() for part in inputs(CHUNK + 9)]
        found, memory = rule(*parts)
        (found.sin().sum() + memory.cos().sum()).backward()
        gradients.append([part.grad for part in parts])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(Config(**HYBRID)).double().eval()


def tokens(n, seed=0):
    return torch.randint(0, 96, (1, n), generator=torch.Generator().manual_seed(seed))


def test_training_on_packed_documents_has_the_gradients_of_each_alone(model):
    lengths = [CHUNK + 5, 1, 2, 30]
    idx = tokens(sum(lengths))

    def gradients(hidden):
        model.zero_grad()
        model.head(hidden).square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    packed = gradients(model.hidden(idx, lengths=lengths))
    alone = gradients(torch.cat([model.hidden(document) for document in idx.split(lengths, dim=1)], dim=1))
    assert all(alone[name].abs().max() > 0 for name in alone)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_bfloat16_under_autocast_is_near_float32(model):
    exact = model(tokens(80))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.float()(tokens(80))
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


@torch.no_grad()
def test_the_cache_takes_any_chunks_and_a_slot_begins_anew(model):
    cache = KVCache(model.config, slots=2, length=200, dtype=torch.float64)
    for seed in (1, 2):  # the second sequence in a slot that the first one has left
        idx, start, hidden = tokens(150, seed), 0, []
        for n_tokens in (70, 2, *[1] * 8, 70):
            span = Span(cache, slice(1, 2), [start])
            hidden.append(model.hidden(idx[:, start : start + n_tokens], span=span))
            start += n_tokens
        torch.testing.assert_close(torch.cat(hidden, dim=1), model.hidden(idx), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_state_cannot_go_back(model):
    cache = KVCache(model.config, slots=1, length=20, dtype=torch.float64)
    model.hidden(tokens(9), span=Span(cache, slice(0, 1), [0]))
    assert not cache.rewindable
    with pytest.raises(LitGPTError, match=r"from position 5: .* at 9"):
        model.hidden(tokens(3), span=Span(cache, slice(0, 1), [5]))


@torch.no_grad()
def test_a_pass_that_failed_leaves_no_state_to_go_on_from(model, monkeypatch):
    cache = KVCache(model.config, slots=1, length=20, dtype=torch.float64)
    monkeypatch.setattr(model.transformer.h[2].attn, "attend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.hidden(tokens(9), span=Span(cache, slice(0, 1), [0]))
    monkeypatch.undo()
    with pytest.raises(LitGPTError, match="begin at 0"):
        model.hidden(tokens(3), span=Span(cache, slice(0, 1), [9]))


@torch.no_grad()
def test_slots_are_exchanged_and_copied_with_their_states(model):
    cache = KVCache(model.config, slots=3, length=20, dtype=torch.float64)
    exact = []
    for slot, n_tokens in enumerate((9, 5)):
        idx = tokens(n_tokens + 1, seed=slot)
        model.hidden(idx[:, :-1], span=Span(cache, slice(slot, slot + 1), [0]))
        exact.append((idx[:, -1:], n_tokens, model.hidden(idx)[:, -1:]))
    cache.swap(0, 1, 9)
    cache.copy(1, 2, 9)  # now: the short one, the long one, the long one
    for slot, (last, start, expected) in enumerate((exact[1], exact[0], exact[0])):
        hidden = model.hidden(last, span=Span(cache, slice(slot, slot + 1), [start]))
        torch.testing.assert_close(hidden, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_size_of_a_cache_with_states_is_known_before_it_is_made(dtype):
    config = Config(**HYBRID)
    cache = KVCache(config, slots=3, length=16, dtype=dtype)
    states = [tensor for states in cache.states.values() for tensor in states]
    assert len(states) == 6 and {state.dtype for state in states} == {dtype, torch.float32}
    assert sum(t.nbytes for t in (*cache.kv_tensors, *states)) == KVCache.nbytes(config, 3, 16, dtype)


def test_a_fresh_layer_remembers_at_many_speeds():
    layer = GatedDeltaNet(Config(**HYBRID), 0)
    assert layer.dt_bias.eq(1).all()
    assert layer.A_log.exp().ge(1).all() and layer.A_log.exp().le(16).all() and layer.A_log.unique().numel() == 4


def test_head_counts_that_do_not_divide_are_told():
    with pytest.raises(LitGPTError, match="multiple of its key heads"):
        Config(**{**HYBRID, "linear_attention": {**SMALL, "n_value_heads": 3}})


def test_channels_that_forget_alike_are_a_head_that_forgets():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 37, 4, generator=generator) for _ in range(3))
    log_decay, beta = -torch.rand(1, 2, 37, generator=generator), torch.rand(1, 2, 37, generator=generator)
    state = torch.randn(1, 2, 4, 4, generator=generator)
    k = l2_norm(k)
    alone = gated_delta_rule(q, k, v, log_decay, beta, state)
    by_channel = channel_delta_rule(q, k, v, log_decay[..., None].expand(-1, -1, -1, 4), beta, state)
    for ours, theirs in zip(by_channel, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
