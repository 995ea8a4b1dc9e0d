"""Frozen weights are kept in the dtype of the products, and nothing that a training step computes changes."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.model import GPT
from litgpt.model.norm import RMSNorm
from litgpt.peft import Adapter, AdapterV2, LoRA, Method, narrow_frozen
from litgpt.training.loss import NextToken
from tests.training.runs import tiny_model

EXPERTS = dict(mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2, moe_intermediate_size=16)
KINDS: dict[str, tuple[Method, dict[str, object]]] = {
    "lora": (LoRA(r=4, dropout=0.0, key=True, mlp=True, projection=True), {}),
    "lora-tied": (LoRA(r=4, dropout=0.0), {"tie_embeddings": True, "norm_qk": True}),
    "lora-saved": (LoRA(r=4, dropout=0.0, modules_to_save=["lm_head"]), {}),
    "lora-experts": (LoRA(r=3, dropout=0.0, mlp=True), EXPERTS),
    "adapter": (Adapter(start_layer=1), {}),
    "adapter_v2": (AdapterV2(), {"bias": True}),
}


def of_16_bits(kind: str) -> tuple[GPT, Method]:
    """A model in float32 whose weights are as a file in 16 bits has them."""
    method, settings = KINDS[kind]
    torch.manual_seed(0)
    model = tiny_model(**settings)
    method.attach(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad = method.owns(name)
            if method.owns(name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(parameter.bfloat16())
    return model, method


def step(model: GPT) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and how many copies of frozen weights are alive for the backward pass."""
    frozen = {parameter.shape for parameter in model.parameters() if not parameter.requires_grad}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copies: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        shapes = (tensor.shape, tensor.mT.shape) if tensor.dim() > 1 else ()
        if tensor.untyped_storage().data_ptr() not in own and any(shape in frozen for shape in shapes):
            copies.add(tensor.untyped_storage().data_ptr())
        return tensor

    ids = torch.arange(30)[None] % 37
    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = NextToken(model).train()(ids, ids, (11, 19))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.detach(), gradients, len(copies)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_stay_to_the_bit_and_no_copies_are_made(kind: str) -> None:
    wide, (narrow, method) = of_16_bits(kind)[0], of_16_bits(kind)
    narrow_frozen(narrow, torch.bfloat16)
    for name, parameter in narrow.named_parameters():
        small = parameter.dim() == 1 and not name.endswith(".bias") and ".linear." not in name
        assert (parameter.dtype == torch.float32) == (method.owns(name) or small), name
    (loss, gradients, copies), (found, own, fewer) = step(wide), step(narrow)
    assert torch.equal(loss, found)
    assert gradients.keys() == own.keys()
    for name in own:
        assert own[name].dtype == torch.float32
        assert torch.equal(gradients[name], own[name]), name
    assert copies
    assert not fewer


def test_an_engine_beside_a_training_computes_as_it_does() -> None:
    """Norms stay wide beside narrow layers, so that it needs autocast, too."""
    model, _ = of_16_bits("lora")
    narrow_frozen(model, torch.bfloat16)
    assert next(part for part in model.modules() if isinstance(part, RMSNorm)).weight.dtype == torch.float32
    answer = Engine(model).submit([1, 2, 3], Sampling(temperature=0), max_new_tokens=4).result()
    tokens = [1, 2, 3]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(4):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert answer == tokens[3:]
