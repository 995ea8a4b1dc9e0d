"""torch's attention is asked for what its fast kernels can do, and says the same."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.kernels import sdpa
from litgpt.model.cache import Span
from tests.engine.oracle import tiny_model


class Asked(TorchFunctionMode):
    """Notes how attention was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped_with_mask: list[bool] = []
        self.keys: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.grouped_with_mask.append(kwargs.get("enable_gqa", False) and kwargs.get("attn_mask") is not None)
            self.keys.append(args[1].size(1))
        return function(*args, **kwargs)


@pytest.mark.parametrize("kind", ["none", "seen", "added", "added-by-head"])
@pytest.mark.parametrize(("queries", "groups"), [*itertools.product((1, 3, 6), (1, 2, 4))])
def test_without_groups_of_torch_s_own_nothing_changes(kind, queries, groups, monkeypatch):
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, 8, dtype=torch.float64)
    k, v = (torch.randn(2, groups, 6, 8, dtype=torch.float64) for _ in range(2))
    mask = {
        "none": None,
        "seen": torch.rand(2, 1, queries, 6) > 0.4,
        "added": torch.randn(2, 1, queries, 6, dtype=torch.float64),
        "added-by-head": torch.randn(1, 4, queries, 6, dtype=torch.float64),
    }[kind]
    causal = mask is None and queries == 6
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3, enable_gqa=True)
    monkeypatch.setattr(sdpa, "takes_groups", lambda q, mask: False)
    with Asked() as asked:
        torch.testing.assert_close(sdpa.attend(q, k, v, mask, causal, 0.3), expected)
    assert asked.keys == ([groups] if queries == 1 else [4])  # of one query each, nothing is repeated


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_device_but_the_cpu_is_asked_for_groups_and_a_mask(dtype):
    """`meta` stands for a device with kernels: whole passes, with windows, of several requests at their positions."""
    model = tiny_model("llama-grouped", sliding_window_size=5, sliding_window_indices=[1, 0]).to("meta", dtype)
    model.set_kv_cache(batch_size=3, dtype=dtype)
    with Asked() as asked, torch.no_grad():
        model.hidden(torch.zeros(1, 12, dtype=torch.long, device="meta"))
        model.hidden(torch.zeros(1, 12, dtype=torch.long, device="meta"), lengths=(4, 8))
        for tokens, starts in ((1, [3, 9, 4]), (1, [7, 7, 7]), (4, [8, 8, 8])):
            span = Span(model.kv_cache, slice(0, len(starts)), starts)
            model.hidden(torch.zeros(3, tokens, dtype=torch.long, device="meta"), span=span)
    assert len(asked.keys) == 2 * 6
    assert not any(asked.grouped_with_mask)


def test_an_engine_keeps_cudnn_off_while_it_computes_and_no_longer(monkeypatch):
    seen: list[bool] = []
    attend = sdpa.attend

    def attending(*args):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args)

    monkeypatch.setattr(sdpa, "attend", attending)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    Engine(tiny_model()).submit([1, 2, 3], Sampling(temperature=0), max_new_tokens=3).result()
    assert seen
    assert not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
