"""Dtypes at the boundaries inside every family's model under autocast, on which it depends what kernels a GPU uses."""

from __future__ import annotations

import pytest
import torch

from litgpt.config import Config
from litgpt.model import GPT
from litgpt.model.attention import Attention
from litgpt.model.moe import Experts
from tests.tiny import CASES

transformers = pytest.importorskip("transformers")


def config_of(case: str) -> Config:
    name, settings = CASES[case]
    alone = name.removesuffix("Config") + "ForCausalLM"
    return Config.from_hf({"architectures": [alone], **getattr(transformers, name)(**settings).to_dict()}, name=case)


@pytest.mark.slow
def test_attention_and_experts_compute_in_autocast_s_dtype_in_every_family(monkeypatch):
    """One wider tensor among queries, keys and values means one kernel a document in the place of one for all; a
    product of experts in float32 means one a expert."""
    attend, linear = Attention.attend, Experts.linear
    seen: set[torch.dtype] = set()

    def attending(self, q, k, v, context):
        seen.update((q.dtype, k.dtype, v.dtype))
        return attend(self, q, k, v, context)

    def multiplying(self, *args):
        y = linear(self, *args)
        seen.add(y.dtype)
        return y

    monkeypatch.setattr(Attention, "attend", attending)
    monkeypatch.setattr(Experts, "linear", multiplying)
    wrong = {}
    for case in CASES:
        seen.clear()
        model = GPT(config_of(case))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model.hidden(torch.zeros(1, 8, dtype=torch.long), lengths=(5, 3))
        if not seen <= {torch.bfloat16}:
            wrong[case] = set(seen)
    assert not wrong
