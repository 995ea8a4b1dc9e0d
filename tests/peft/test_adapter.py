"""LLaMA-Adapter against its formula, written out slowly, and against the names and shapes of LitGPT's files."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from litgpt.adapter import Adapter
from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import AttentionContext
from litgpt.peft import load_owned, owned_state
from litgpt.peft.adapter import PromptedAttention
from tests.engine.oracle import naive, prompts
from tests.paths import GOLDEN
from tests.peft.test_lora import EXPERTS, LATENT_SIZES, LLAMA, NEOX

MODELS: dict[str, dict[str, Any]] = {
    "grouped queries": {**LLAMA, "n_layer": 4},
    "multi-query": {**LLAMA, "n_layer": 3, "n_query_groups": 1},
    "biases, part of a head turns": {**NEOX, "n_layer": 3},
    "window": {**LLAMA, "n_layer": 3, "sliding_window_size": 4},
    "soft caps": {**LLAMA, "n_layer": 3, "attention_logit_softcapping": 5.0},
    "norms of queries and keys": {**LLAMA, "n_layer": 3, "norm_qk": True},
    "learned positions": {**NEOX, "n_layer": 3, "learned_positions": True, "rotary_percentage": 0.0},
}
TOKENS = torch.arange(20).view(2, 10)


def adapted(sizes: dict[str, Any], dtype: torch.dtype = torch.float64, gate: float = 0.5) -> GPT:
    """A model with adapters attached whose gates are open."""
    torch.manual_seed(0)
    model = GPT(Config(**sizes)).to(dtype)
    Adapter().attach(model)
    for name, parameter in model.named_parameters():
        if name.endswith("gating_factor"):
            torch.nn.init.normal_(parameter, std=gate)
    return model.eval()


def golden_cases() -> list[Any]:
    return json.loads((GOLDEN / "adapter_names.json").read_text())


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["model"])
def test_names_and_shapes_are_those_of_litgpts_files(case: dict[str, Any]) -> None:
    model = GPT.skeleton(Config.from_name(case["model"], **case["config"]))
    method = Adapter()
    method.attach(model)
    owned = owned_state(model, method.owns)
    assert {name: list(tensor.shape) for name, tensor in owned.items()} == case["adapter"]
    assert all(tensor.is_meta for tensor in owned.values())


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_an_untrained_adapter_changes_nothing(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(Config(**sizes))
    before = model(TOKENS)
    Adapter().attach(model)
    torch.testing.assert_close(model(TOKENS), before, rtol=0, atol=0)


def rotated(x: Tensor, position: int) -> Tensor:
    """A query or key `(H,)` at its position: the i-th of the first half and of the second are one complex number."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def slow_attention(attn: PromptedAttention, x: Tensor) -> Tensor:
    """The paper's attention for one sequence `(T, C)`: token by token, head by head, no cache, no masks."""
    config = attn.config
    H, N, G = config.head_size, config.n_head, config.n_query_groups
    assert H is not None and G is not None
    query, key, value = attn.qkv.weight.split([N * H, G * H, G * H])  # rows: [Q | K | V]
    prompt = attn.adapter_wte.weight  # (P, C)
    rows = []
    for t in range(len(x)):
        heads = []
        for n in range(N):
            own = slice(n * H, (n + 1) * H)
            group = slice(n // (N // G) * H, (n // (N // G) + 1) * H)
            q = rotated(query[own] @ x[t], t)
            scores = torch.stack([q @ rotated(key[group] @ x[s], s) for s in range(t + 1)]) / math.sqrt(H)
            y = sum(share * (value[group] @ x[s]) for s, share in enumerate(scores.softmax(0)))
            scores = torch.stack([q @ (key[group] @ learned) for learned in prompt]) / math.sqrt(H)
            prompted = sum(share * (value[group] @ prompt[p]) for p, share in enumerate(scores.softmax(0)))
            heads.append(y + attn.gating_factor[0, 0, n, 0] * prompted)
        rows.append(attn.proj.weight @ torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_output_and_gradients_are_those_of_the_paper(groups: int) -> None:
    model = adapted({**LLAMA, "n_layer": 3, "n_query_groups": groups})
    attn = model.transformer.h[2].attn
    x = torch.randn(5, 32, dtype=torch.float64)
    angles = torch.arange(5, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    ropes = torch.cat((angles.cos(), angles.cos()), dim=-1), torch.cat((-angles.sin(), angles.sin()), dim=-1)
    context = AttentionContext(ropes=(ropes,), masks={None: None})
    ours, paper = attn(x[None], context)[0], slow_attention(attn, x)
    torch.testing.assert_close(ours, paper, rtol=0, atol=1e-12)
    target = torch.randn_like(ours)
    learned = (attn.adapter_wte.weight, attn.gating_factor)
    gradients = torch.autograd.grad((ours * target).sum(), learned)
    for gradient, expected in zip(gradients, torch.autograd.grad((paper * target).sum(), learned), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_prompts_and_gates_train_and_nothing_else_does() -> None:
    method = Adapter()
    torch.manual_seed(0)
    model = GPT(Config(**{**LLAMA, "n_layer": 4}))
    method.attach(model)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.no_grad():
        model(TOKENS)  # a look at the model beforehand leaves nothing behind
    for _ in range(2):  # the prompts' gradients pass the gates, which are shut at first
        model(TOKENS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start[name])}
    assert changed == {name for name in start if method.owns(name)}
    assert changed == {
        f"transformer.h.{i}.attn.{part}" for i in (2, 3) for part in ("adapter_wte.weight", "gating_factor")
    }


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_packed_documents_are_as_if_alone(sizes: dict[str, Any]) -> None:
    model = adapted(sizes)
    lengths = [3, 7, 1, 5]
    tokens = torch.arange(16)[None]
    packed = model.hidden(tokens, lengths=lengths)
    alone = torch.cat([model.hidden(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_text_from_a_cache_is_that_of_the_naive_way(sizes: dict[str, Any]) -> None:
    model = adapted(sizes, gate=3.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4) if parameter.dim() > 1 else None
    given = [[token % 64 for token in prompt] for prompt in prompts(3, 9, 6)]
    engine = Engine(model, slots=2, chunk=4)
    requests = [engine.submit(prompt, Sampling(temperature=0), max_new_tokens=8) for prompt in given]
    for prompt, request in zip(given, requests, strict=True):
        assert request.result() == naive(model, prompt, 8)


def test_mixed_precision_is_close_to_exact() -> None:
    model = adapted({**LLAMA, "n_layer": 3}, torch.float32)
    exact = model(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(TOKENS)
    mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), exact, rtol=0, atol=0.05)
    assert model.transformer.h[2].attn.gating_factor.grad.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_adapter_comes_back_under_its_names(device: str) -> None:
    method = Adapter()
    saved = owned_state(adapted({**LLAMA, "n_layer": 4}), method.owns)
    with torch.device(device):
        fresh = GPT(Config(**{**LLAMA, "n_layer": 4})).double()
        method.attach(fresh)
    load_owned(fresh, method.owns, saved, "a file")
    found = owned_state(fresh, method.owns)
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


def test_experts_may_follow() -> None:
    assert adapted({**LLAMA, **EXPERTS, "n_layer": 3})(TOKENS).isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (LLAMA, "This model has 2 layers, and adapters begin at layer number 2"),
        ({**LLAMA, "n_layer": 3, "n_query_groups": 4, "latent_attention": LATENT_SIZES}, "latent attention"),
    ],
)
def test_models_with_no_place_for_it_are_refused(sizes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        Adapter().attach(GPT.skeleton(Config(**sizes)))
    assert "\n" not in str(caught.value)
