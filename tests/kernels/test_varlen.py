"""Packed attention in one kernel: when it is chosen, what torch's function is told, and on CUDA that it is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.attention.varlen  # which looks up what a test replaces
from torch import Tensor

from litgpt.config import Config
from litgpt.kernels import varlen
from litgpt.model.attention import Attention, AttentionContext

LENGTHS = (5, 1, 16, 8)


def packed(groups: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of `groups`, with gradients."""
    torch.manual_seed(0)

    def part(heads: int) -> Tensor:
        return torch.randn(1, heads, sum(LENGTHS), 16, dtype=dtype, device=device).requires_grad_()

    return part(4), part(groups), part(groups)


def looking(**options: Any) -> Attention:
    config = Config(n_layer=1, n_head=4, n_embd=64, block_size=64, padded_vocab_size=32, **options)
    return Attention(config, 0, 0.3)


def scores(q: Tensor, k: Tensor, ends: Tensor, scale: float, window: Any) -> Tensor:
    """`(T, N, H)` and `(T, N, H)` → `(N, T, T)`, minus infinity where a query doesn't see a key."""
    at = torch.arange(q.size(0))
    document = torch.bucketize(at, ends, right=True)
    back = at[:, None] - at
    seen = (document[:, None] == document) & (back >= 0) & (back <= (window[0] if window[0] >= 0 else len(at)))
    return (torch.einsum("qnh,knh->nqk", q, k) * scale).masked_fill(~seen, -torch.inf)


def with_groups(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
                return_aux: Any = None) -> Any:  # fmt: skip
    """What torch's function promises, the slow way."""
    assert window_size[1] == 0
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa or query.size(1) == key.size(1)
    assert key.size(-1) == value.size(-1)
    key, value = (part.repeat_interleave(query.size(1) // key.size(1), dim=1) for part in (key, value))
    found = scores(query, key, cu_seq_q, scale, window_size)
    y = torch.einsum("nqk,knh->qnh", found.softmax(-1), value)
    return (y, found.logsumexp(-1)) if return_aux is not None and return_aux.lse else y


def without_groups(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, *longest: int, scale: float, **more: Any
) -> Any:
    """The same as an older torch has it."""
    assert "enable_gqa" not in more
    return with_groups(q, k, v, cu_seq_q, cu_seq_k, *longest, scale=scale, **more)


def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, ends: Tensor,
             *rest: Any, scale: float, window_size_left: int, window_size_right: int) -> Any:  # fmt: skip
    """What FlashAttention's backward pass computes, by the equations of its paper (section B.2)."""
    groups = k.size(1)
    k, v = (part.repeat_interleave(q.size(1) // groups, dim=1) for part in (k, v))
    p = (scores(q, k, ends, scale, (window_size_left, window_size_right)) - lse[..., None]).exp()
    of_p = torch.einsum("qnh,knh->nqk", gradient, v)
    of_scores = p * (of_p - (gradient * y).sum(-1).t()[..., None]) * scale
    of_k, of_v = torch.einsum("nqk,qnh->knh", of_scores, q), torch.einsum("nqk,qnh->knh", p, gradient)
    return torch.einsum("nqk,knh->qnh", of_scores, k), *(x.unflatten(1, (groups, -1)).sum(2) for x in (of_k, of_v))


def test_boundaries_are_where_documents_begin_and_the_last_one_ends() -> None:
    ends = varlen.boundaries((3, 1, 4), torch.device("cpu"))
    assert ends.tolist() == [0, 3, 4, 8]
    assert ends.dtype == torch.int32


WINDOW = {"sliding_window_size": 4, "sliding_window_indices": [1]}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": WINDOW,
    "chunks": {**WINDOW, "chunked_windows": True},
    "sinks": {"attention_sinks": True},
    "sinks-window": {"attention_sinks": True, **WINDOW},
}


@pytest.mark.parametrize("function", [with_groups, without_groups])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_is_told_the_same_attention_as_document_by_document(
    kind: str, groups: int, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values smaller than the keys, too, as latent attention has them; gradients included."""
    attention = looking(**KINDS[kind])
    q, k, v = packed(groups, torch.float64)
    v = v[..., :12].detach().requires_grad_()
    wanted = [q, k, v]
    if attention.sinks is not None:
        attention.sinks = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
        wanted.append(attention.sinks)
    expected = attention.attend(q, k, v, AttentionContext((), {}, LENGTHS))
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), wanted)
    monkeypatch.setattr(varlen, "kernel", lambda: function)
    monkeypatch.setattr(varlen, "applies", lambda *tensors: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    found = attention.attend(q, k, v, AttentionContext((), {}, LENGTHS))
    torch.testing.assert_close(found, expected)
    for own, other in zip(torch.autograd.grad((found * weights).sum(), wanted), gradients, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "there"),
    [
        (torch.bfloat16, 64, (8, 0), True),
        (torch.float16, 256, (9, 0), True),
        (torch.float32, 64, (9, 0), False),
        (torch.bfloat16, 20, (9, 0), False),
        (torch.bfloat16, 512, (9, 0), False),
        (torch.bfloat16, 64, (7, 5), False),
    ],
)
def test_is_chosen_where_there_is_a_kernel(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int], there: bool
) -> None:
    assert varlen.has_kernel(dtype, head_size, capability) is there


def test_is_not_chosen_on_a_cpu() -> None:
    assert not varlen.applies(*packed(4, torch.bfloat16))


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, True),
        (WINDOW, True),
        ({"attention_logit_softcapping": 5.0}, False),
        ({"attention_sinks": True}, True),
    ],
)
def test_attention_uses_it_unless_scores_are_changed(
    options: dict[str, Any], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], *more: Any) -> Tensor:
        calls.append(lengths)
        return q

    monkeypatch.setattr(varlen, "applies", lambda *tensors: True)
    monkeypatch.setattr(varlen, "attend", attend)
    looking(**options).attend(*packed(4), AttentionContext((), {}, LENGTHS))
    assert bool(calls) is chosen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_document_by_document_on_cuda(kind: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = packed(groups, torch.bfloat16, "cuda")
    if not varlen.applies(*tensors):
        pytest.skip("this GPU has no such kernel")
    weights = torch.randn(1, 4, sum(LENGTHS), 16, device="cuda", dtype=torch.bfloat16)
    attention = looking(**KINDS[kind]).to("cuda")
    found = attention.attend(*tensors, AttentionContext((), {}, LENGTHS))
    gradients = torch.autograd.grad((found * weights).sum(), tensors)
    monkeypatch.setattr(varlen, "applies", lambda *tensors: False)
    expected = attention.attend(*tensors, AttentionContext((), {}, LENGTHS))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    for own, other in zip(gradients, torch.autograd.grad((expected * weights).sum(), tensors), strict=True):
        torch.testing.assert_close(own, other, atol=5e-2, rtol=5e-2)
