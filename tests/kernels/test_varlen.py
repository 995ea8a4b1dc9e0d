"""Packed attention in one kernel: when it is chosen, what torch's function is told, and on CUDA that it is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


def with_groups(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """What torch's function promises, the slow way: attention within `cu_seq`, each range by itself."""
    assert window_size == (-1, 0)
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa or query.size(1) == key.size(1)
    found = []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_k[1:].tolist(), strict=True):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        found.append(y[0].transpose(0, 1))
    return torch.cat(found)


def without_groups(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int,
                   max_k: int, *, scale: float, window_size: tuple[int, int]) -> Tensor:  # fmt: skip
    """The same as an older torch has it."""
    return with_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def test_boundaries_are_where_documents_begin_and_the_last_one_ends() -> None:
    ends = varlen.boundaries((3, 1, 4), torch.device("cpu"))
    assert ends.tolist() == [0, 3, 4, 8]
    assert ends.dtype == torch.int32


@pytest.mark.parametrize("function", [with_groups, without_groups])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_is_told_the_same_attention_as_document_by_document(
    groups: int, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: function)
    q, k, v = packed(groups)
    expected = looking().attend(q, k, v, AttentionContext((), {}, LENGTHS))
    torch.testing.assert_close(varlen.attend(q, k, v, LENGTHS, 0.3), expected)


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
        ({"sliding_window_size": 4, "sliding_window_indices": [1]}, False),
        ({"attention_logit_softcapping": 5.0}, False),
        ({"attention_sinks": True}, False),
    ],
)
def test_attention_uses_it_where_it_is_plain(
    options: dict[str, Any], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        calls.append(lengths)
        return q

    monkeypatch.setattr(varlen, "applies", lambda *tensors: True)
    monkeypatch.setattr(varlen, "attend", attend)
    looking(**options).attend(*packed(4), AttentionContext((), {}, LENGTHS))
    assert bool(calls) is chosen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("groups", [1, 4])
def test_equals_document_by_document_on_cuda(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = packed(groups, torch.bfloat16, "cuda")
    if not varlen.applies(*tensors):
        pytest.skip("this GPU has no such kernel")
    weights = torch.randn(1, 4, sum(LENGTHS), 16, device="cuda", dtype=torch.bfloat16)
    found = looking().attend(*tensors, AttentionContext((), {}, LENGTHS))
    gradients = torch.autograd.grad((found * weights).sum(), tensors)
    monkeypatch.setattr(varlen, "applies", lambda *tensors: False)
    expected = looking().attend(*tensors, AttentionContext((), {}, LENGTHS))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    for own, other in zip(gradients, torch.autograd.grad((expected * weights).sum(), tensors), strict=True):
        torch.testing.assert_close(own, other, atol=5e-2, rtol=5e-2)
