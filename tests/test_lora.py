"""LoRA against its formula, against `peft`, and against the names and shapes of LitGPT's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA, LoRALinear, LoRAQKVLinear
from litgpt.model import GPT
from litgpt.peft import base_state, load_owned, merged_weights, owned_state, unwrap_modules

EVERYWHERE = {"query": True, "key": True, "value": True, "projection": True, "mlp": True, "head": True}
LLAMA = {
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 2,
    "n_embd": 32,
    "head_size": 8,
    "intermediate_size": 48,
    "vocab_size": 64,
    "padded_vocab_size": 64,
    "block_size": 32,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "bias": False,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
}
NEOX = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 64, "padded_vocab_size": 64, "block_size": 32}
EXPERTS = {
    "mlp_class_name": "LLaMAMoE",
    "n_expert": 4,
    "n_expert_per_token": 2,
    "n_shared_expert": 1,
    "moe_intermediate_size": 24,
}
LATENT_SIZES = dict(q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
MODELS = {
    "llama, grouped queries": LLAMA,
    "neox, biases": NEOX,
    "multi-query": {**LLAMA, "n_query_groups": 1},
    "experts": {**LLAMA, **EXPERTS},
    "latent attention": {**LLAMA, "n_query_groups": 4, "latent_attention": LATENT_SIZES},
}
SWITCHES = [
    {"query": True, "value": True},
    {"query": False, "key": True, "value": False},
    {"query": False, "value": False, "projection": True},
    {"query": False, "value": False, "mlp": True, "head": True},
    EVERYWHERE,
]


def model_with(lora: LoRA, sizes: dict[str, Any], dtype: torch.dtype = torch.float64) -> GPT:
    """A model with `lora` attached and an update that does something."""
    torch.manual_seed(0)
    model = GPT(Config(**sizes)).to(dtype)
    lora.attach(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def golden_cases() -> list[Any]:
    return json.loads((Path(__file__).parent / "golden" / "lora_names.json").read_text())


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: f"{case['model']}-{'-'.join(case['lora'])}")
def test_names_and_shapes_are_those_of_litgpts_files(case: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = GPT(Config(**case["config"]))
    lora = LoRA(r=4, **case["lora"])
    lora.attach(model)
    assert {name: list(tensor.shape) for name, tensor in owned_state(model, lora.owns).items()} == case["parameters"]


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
def test_every_update_trains_and_merges_while_reading(sizes: dict[str, Any]) -> None:
    lora = LoRA(r=4, dropout=0.0, **EVERYWHERE)
    model = model_with(lora, sizes)
    tokens = torch.arange(40).view(2, 20)
    model(tokens).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == lora.owns(name), name
    streamed = dict(merged_weights(model, list(base_state(model, lora.owns))))
    unwrap_modules(model)
    assert streamed.keys() == model.state_dict().keys()
    assert all(torch.equal(streamed[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sizes", [LLAMA, {**LLAMA, **EXPERTS}], ids=["dense", "experts"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_update_comes_back_under_its_names(sizes: dict[str, Any], device: str) -> None:
    lora = LoRA(r=4, **EVERYWHERE)
    saved = owned_state(model_with(lora, sizes), lora.owns)
    with torch.device(device):
        fresh = GPT(Config(**sizes)).double()
        lora.attach(fresh)
    load_owned(fresh, lora.owns, saved, "a file")
    found = owned_state(fresh, lora.owns)
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches))
def test_merged_model_computes_the_same(sizes: dict[str, Any], switches: dict[str, bool]) -> None:
    model = model_with(LoRA(r=4, **switches), sizes)
    tokens = torch.arange(20).view(2, 10)
    updated = model(tokens)
    unwrap_modules(model)
    assert model.state_dict().keys() == GPT(Config(**sizes)).state_dict().keys()
    torch.testing.assert_close(model(tokens), updated, rtol=0, atol=1e-12)


def test_untrained_update_changes_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(Config(**LLAMA))
    tokens = torch.arange(10)[None]
    before = model(tokens)
    LoRA(**EVERYWHERE).attach(model)
    torch.testing.assert_close(model.eval()(tokens), before, rtol=0, atol=0)


def test_qkv_update_is_the_sum_of_one_product_for_each_enabled_part() -> None:
    model = model_with(LoRA(r=4, alpha=12, query=True, value=True), LLAMA)
    layer = model.transformer.h[0].attn.qkv
    x = torch.randn(7, 32, dtype=torch.float64)
    a_q, a_v = layer.lora_A.split(4)
    b_q, b_v = layer.lora_B.split([32, 16])
    none = torch.zeros(7, 16, dtype=torch.float64)
    update = torch.cat([x @ a_q.T @ b_q.T, none, x @ a_v.T @ b_v.T], dim=1)
    torch.testing.assert_close(layer(x), layer.linear(x) + 12 / 4 * update, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(6, 5).double(), r=2, alpha=4, dropout=0.0)
    layer.linear.requires_grad_(False)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.lora_A, layer.lora_B)
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * target).sum(), inputs)
    formula = layer.linear(x) + 2 * (x @ layer.lora_A.T @ layer.lora_B.T)
    for gradient, expected in zip(ours, torch.autograd.grad((formula * target).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_equals_peft_on_a_llama_linear() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 24, bias=False).double()
    ours = LoRALinear(linear, r=4, alpha=8, dropout=0.0)
    torch.nn.init.normal_(ours.lora_B)
    settings = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["0"])
    theirs = peft.get_peft_model(torch.nn.Sequential(linear), settings)
    layer = theirs.base_model.model[0].double()
    layer.lora_A["default"].weight.data.copy_(ours.lora_A.data)
    layer.lora_B["default"].weight.data.copy_(ours.lora_B.data)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    merged = ours.merge_into(ours.weight)
    torch.testing.assert_close(merged, theirs.merge_and_unload()[0].weight, rtol=0, atol=1e-12)


def test_only_the_update_trains() -> None:
    lora = LoRA(r=2, **EVERYWHERE)
    model = model_with(lora, LLAMA)
    model(torch.arange(10)[None]).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == lora.owns(name), name


def test_dropout_acts_in_training_only() -> None:
    model = model_with(LoRA(r=4, dropout=0.5), LLAMA)
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_mixed_precision_adds_a_float32_update_to_a_bfloat16_output() -> None:
    model = model_with(LoRA(r=4, dropout=0.0), LLAMA, torch.float32)
    tokens = torch.arange(10)[None]
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(tokens)
        mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), exact, rtol=0, atol=0.05)
    assert model.transformer.h[0].attn.qkv.lora_A.grad.dtype == torch.float32


def test_attaches_on_meta_and_starts_when_materialised() -> None:
    with torch.device("meta"):
        model = GPT(Config(**LLAMA))
    LoRA().attach(model)
    layer = model.transformer.h[0].attn.qkv
    assert isinstance(layer, LoRAQKVLinear) and layer.lora_A.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.lora_A.abs().sum() > 0 and layer.lora_B.abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"r": 0}, "lora_r is 0"),
        ({"dropout": 1.0}, "lora_dropout is 1.0"),
        ({"query": False, "value": False}, "All of lora_query"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        LoRA(**settings)
