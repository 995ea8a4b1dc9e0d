"""What every method shares: replacing linears, naming parameters, saving and reading what is owned."""

from __future__ import annotations

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full, base_state, load_owned, merged_weights, owned_state, parameter_counts, unwrap_modules

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "padded_vocab_size": 32, "block_size": 16}


@pytest.fixture
def lora() -> LoRA:
    return LoRA(r=2, mlp=True)


@pytest.fixture
def model(lora: LoRA) -> GPT:
    torch.manual_seed(0)
    model = GPT(Config(**SIZES))
    lora.attach(model)
    for tensor in owned_state(model, lora.owns).values():
        torch.nn.init.normal_(tensor)
    return model


def test_frozen_parameters_keep_the_names_a_checkpoint_has(model: GPT, lora: LoRA) -> None:
    assert dict(base_state(model, lora.owns)).keys() == GPT(Config(**SIZES)).state_dict().keys()


def test_owned_parameters_come_back_from_a_file(model: GPT, lora: LoRA) -> None:
    with torch.device("meta"):
        fresh = GPT(Config(**SIZES))
    lora.attach(fresh)
    saved = owned_state(model, lora.owns)
    load_owned(fresh, lora.owns, saved, "a file")
    for name, tensor in owned_state(fresh, lora.owns).items():
        assert torch.equal(tensor, saved[name]), name


def test_merging_while_reading_equals_merging_in_place(model: GPT, lora: LoRA) -> None:
    base = dict(base_state(model, lora.owns))
    streamed = dict(merged_weights(model, base.items()))
    unwrap_modules(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(streamed[name], tensor), name
    assert streamed["transformer.wte.weight"] is base["transformer.wte.weight"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.popitem(), "lacks transformer.h.1.mlp.proj.lora_B"),
        (
            lambda state: state.update({"lm_head.lora_A": torch.zeros(2, 16)}),
            "lm_head.lora_A, which the model has no place for",
        ),
        (lambda state: state.update({"transformer.h.0.attn.qkv.lora_A": torch.zeros(1, 16)}), "of shape"),
    ],
)
def test_a_file_of_another_method_is_refused(model: GPT, lora: LoRA, change: object, complaint: str) -> None:
    state = owned_state(model, lora.owns)
    change(state)  # type: ignore[operator]
    with pytest.raises(LitGPTError, match=complaint):
        load_owned(model, lora.owns, state, "lit_model.pth.lora")


def test_counts_a_tied_head_once() -> None:
    tied = GPT(Config(**SIZES, tie_embeddings=True))
    untied = GPT(Config(**SIZES, tie_embeddings=False))
    assert parameter_counts(untied, lambda name: True)[0] - parameter_counts(tied, lambda name: True)[0] == 32 * 16


def test_full_training_owns_everything() -> None:
    model = GPT(Config(**SIZES))
    model.requires_grad_(False)
    method = Full()
    method.attach(model)
    assert all(parameter.requires_grad and method.owns(name) for name, parameter in model.named_parameters())
