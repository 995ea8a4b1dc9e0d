"""What is counted on tensors without memory, held to the same training with real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.args import TrainArgs
from litgpt.errors import LitGPTError
from litgpt.kernels import dropout
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.model.initialization import initialize
from litgpt.peft import Full, Method, narrow_frozen
from litgpt.quantize import quantize_model
from litgpt.training.blocks import checkpoint_blocks
from litgpt.training.loss import CHUNK_BYTES, NextToken, _Sums
from litgpt.training.optim.optimizers import make_optimizer
from litgpt.training.planner import memory_estimate
from litgpt.training.planner.memory_estimate import MemoryEstimate, MemoryTracker, RunSpec, estimate_memory
from tests.paths import ROOT
from tests.training.runs import tiny_config

LENGTH = 64
SIZES: dict[str, Any] = dict(
    block_size=LENGTH, n_layer=2, n_head=4, n_embd=64, n_query_groups=2, intermediate_size=128, padded_vocab_size=512
)


def spec(method: Method | None = None, precision: str = "32-true", **changes: Any) -> RunSpec:
    train = {"micro_batch_size": 2, "global_batch_size": 4, **changes.pop("train", {})}
    return RunSpec(
        config=changes.pop("config", None) or tiny_config(**SIZES),
        method=method or Full(),
        train=TrainArgs(**train),
        optimizer=changes.pop("optimizer", "AdamW"),
        precision=precision,
        device=torch.device("cpu"),
        length=LENGTH,
        **changes,
    )


def real_model(of: RunSpec) -> GPT:
    model = GPT(of.config)
    initialize(model)
    of.method.attach(model)
    model.to(torch.bfloat16 if of.precision == "bf16-true" else torch.float32)
    if of.precision == "bf16-mixed":
        narrow_frozen(model, torch.bfloat16)
    if of.train.checkpointed_every:
        checkpoint_blocks(model, of.train.checkpointed_every)
    return model.train()


def loss_of(model: GPT, of: RunSpec) -> Tensor:
    ids = torch.zeros(1, 2 * LENGTH, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=of.precision == "bf16-mixed"):
        return NextToken(model).train()(ids, ids, (LENGTH, LENGTH))


KINDS = {
    "full": spec(),
    "full, bf16-true": spec(precision="bf16-true"),
    "full, bf16-mixed": spec(precision="bf16-mixed"),
    "SGD": spec(optimizer={"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}),
    "Adafactor": spec(optimizer="Adafactor"),
    "Muon": spec(optimizer="Muon"),
    "LoRA": spec(LoRA(r=4)),
    "LoRA, bf16-mixed": spec(LoRA(r=4), precision="bf16-mixed"),
    "Adapter": spec(Adapter(start_layer=1)),
    "AdapterV2": spec(AdapterV2()),
    "checkpointing": spec(train={"activation_checkpointing": "full"}),
    "tied": spec(config=tiny_config(**SIZES, tie_embeddings=True)),
}


@cache
def estimated(kind: str) -> MemoryEstimate:
    return estimate_memory(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_gradients_and_optimizer_are_counted_to_the_byte(kind):
    of = KINDS[kind]
    found, model = estimated(kind), real_model(of)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = make_optimizer(of.optimizer, trained)
    loss_of(model, of).backward()
    gradients = sum(parameter.grad.nbytes for _, parameter in trained if parameter.grad is not None)
    optimizer.step()
    state = [entry for of_one in optimizer.state.values() for entry in of_one.values() if isinstance(entry, Tensor)]
    tables = list(model.buffers())
    assert found.memory.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *tables))
    assert found.memory.gradients == gradients
    assert found.memory.optimizer == sum(entry.nbytes for entry in state)
    assert found.saved == sum(parameter.nbytes for _, parameter in trained)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.trainable == sum(parameter.numel() for _, parameter in trained)


@pytest.mark.parametrize("kind", ["full", "full, bf16-true", "full, bf16-mixed", "LoRA", "AdapterV2"])
def test_activations_are_what_autograd_keeps(kind):
    of = KINDS[kind]
    model = real_model(of)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    at_trunk: list[int] = []
    model.transformer.ln_f.register_forward_hook(lambda *_: at_trunk.append(sum(kept.values())))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, of)
    assert estimated(kind).memory.activations == pytest.approx(at_trunk[0], rel=0.25)


@pytest.mark.parametrize("kind", ["full", "full, bf16-mixed", "LoRA", "checkpointing"])
def test_the_peak_is_that_of_a_real_step(kind, monkeypatch):
    of, planned = KINDS[kind], estimated(kind)
    monkeypatch.setattr(memory_estimate, "VALUE_DEPENDENT", {})  # real tensors have values
    with MemoryTracker() as tracker:
        model = real_model(of)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        optimizer = make_optimizer(of.optimizer, trained)
        tracker.peak = tracker.live
        for _ in range(2):
            for _ in range(2):
                (loss_of(model, of) * 0.5).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert planned.memory.peak == pytest.approx(tracker.peak, rel=0.1)


@pytest.mark.parametrize(
    "train",
    [
        {"activation_checkpointing": 2},
        {"activation_offload": True},
        {"micro_batch_size": 1},
        {"optimizer_in_backward": True, "global_batch_size": 2},
    ],
)
def test_what_saves_memory_does_so_here(train):
    usual, saving = estimated("full"), estimate_memory(spec(train=train))
    assert saving.memory.peak < usual.memory.peak
    assert saving.memory.activations < usual.memory.activations or saving.memory.gradients < usual.memory.gradients


def test_packed_samples_of_different_lengths_and_padded_ones_can_be_gone_through():
    even, uneven, padded = (
        estimated("full"),
        estimate_memory(spec(uneven=True)),
        estimate_memory(spec(train={"packing": False})),
    )
    assert even.memory.activations == pytest.approx(padded.memory.activations, rel=0.1)
    assert even.memory.activations == pytest.approx(uneven.memory.activations, rel=0.35)


@pytest.mark.parametrize("method", [Full(), LoRA(r=3, mlp=True)], ids=["full", "unaligned"])
def test_mixtures_of_experts_can_be_gone_through(method):
    config = tiny_config(**SIZES, mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2)
    found = estimate_memory(spec(method, config=config))
    assert found.memory.weights == sum(p.nbytes for p in real_model(spec(method, config=config)).parameters())


@pytest.mark.parametrize("mode", ["bnb.nf4-dq", "bnb.int8"])
def test_weights_in_few_bits_are_counted(mode):
    pytest.importorskip("bitsandbytes")
    of = spec(LoRA(), "bf16-true", quantize=mode)
    model = GPT(of.config)
    quantize_model(model, mode, torch.bfloat16)
    real = 0
    for module in model.modules():
        if hasattr(module, "dequantized"):
            state = getattr(module, "state", None)
            scales = [state and state.absmax, state and state.state2 and state.state2.absmax]
            own = [module.weight, *module.buffers(), *(scale for scale in scales if isinstance(scale, Tensor))]
            real += sum(tensor.nbytes for tensor in own)
    found = estimate_memory(of)
    assert found.memory.quantized == pytest.approx(real, rel=0.03)
    assert found.memory.weights < estimated("full, bf16-true").memory.weights
    assert found.parameters - found.trainable == estimated("full").parameters


class Choosy(torch.optim.SGD):
    """Its step is not for these."""

    def step(self, closure: Any = None) -> None:
        raise RuntimeError("no gradients of this kind")


def test_what_needs_values_is_one_sentence():
    with pytest.raises(LitGPTError, match="can't be gone through without values: no gradients of this kind"):
        estimate_memory(spec(optimizer=f"{__name__}.Choosy"))


def test_nothing_of_a_large_model_is_allocated():
    """A hundred billion parameters, on this machine."""
    config = tiny_config(
        n_layer=2, n_head=64, n_embd=2**15, n_query_groups=64, intermediate_size=2**20, block_size=LENGTH
    )
    assert estimate_memory(spec(config=config)).parameters > 1e11


@pytest.mark.parametrize("tokens", [1000, 4000])
def test_a_long_context_is_planned_as_fast_as_a_short_one(tokens, monkeypatch):
    """Of chunks of one shape each is gone through once: by far the most that the loss of a large vocabulary does."""
    calls = Counter[tuple[int, ...]]()
    real = _Sums._to_gradient
    monkeypatch.setattr(_Sums, "_to_gradient", lambda self, *of: calls.update([tuple(of[0].shape)]) or real(self, *of))
    sizes = {**SIZES, "n_embd": 16, "padded_vocab_size": 100_000, "block_size": tokens}
    of = replace(spec(config=tiny_config(**sizes), train={"micro_batch_size": 1}), length=tokens)
    assert estimate_memory(of).memory.loss > CHUNK_BYTES
    assert sum(calls.values()) <= 8


def test_an_update_s_dropout_draws_no_numbers_for_a_plan(monkeypatch):
    monkeypatch.setattr(dropout, "keep_mask", None)
    dropped, kept = (estimate_memory(spec(LoRA(r=4, dropout=share))).memory for share in (0.5, 0.0))
    assert dropped.activations > kept.activations


@pytest.mark.slow
def test_a_process_needs_what_the_plan_says() -> None:
    """Within a tenth, the libraries left out."""
    only = "full;full, checkpointing"
    code = [sys.executable, str(ROOT / "benchmarks" / "plan.py"), "--json", "--only", only]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2
    for one in found:
        assert one["planned"] == pytest.approx(one["measured"], rel=0.1), one["name"]
