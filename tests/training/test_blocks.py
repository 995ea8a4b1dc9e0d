"""Checkpointing, offloading and compiling: the same gradients, from less memory or fewer compilations."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from litgpt.adapter import Adapter
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT, Block
from litgpt.training import blocks
from litgpt.training.batching.packing import pack, pad
from litgpt.training.blocks import Offload, checkpoint_blocks, compile_blocks, offloading, restore
from litgpt.training.loss import NextToken
from tests.training.runs import LENGTHS, make_samples, tiny_model

MIXTURE = dict(mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2, moe_intermediate_size=16)


def with_method(method: Any, **changes: Any) -> GPT:
    model = tiny_model(n_layer=4, **changes)
    torch.manual_seed(3)
    method.attach(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if method.owns(name):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS: dict[str, Callable[[], GPT]] = {
    "full": lambda: tiny_model(n_layer=4),
    "LoRA with dropout": lambda: with_method(LoRA(r=2, dropout=0.5)),
    "adapter": lambda: with_method(Adapter()),
    "mixture": lambda: tiny_model(n_layer=4, **MIXTURE),
    "LoRA on a mixture": lambda: with_method(LoRA(r=2, dropout=0.5, mlp=True), **MIXTURE),
    "windows and parallel": lambda: tiny_model(n_layer=4, sliding_window_size=6, parallel_residual=True),
}


def gradients(model: GPT, batch: Any, offload: bool = False) -> tuple[Tensor, Tensor]:
    """Loss and all gradients of one batch."""
    torch.manual_seed(5)  # dropout
    model.zero_grad()
    with Offload(model) if offload else offloading(model, wanted=False):
        loss = NextToken(model).train()(batch.inputs, batch.targets, batch.lengths)
    loss.backward()
    found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(found)


def saved_bytes(model: GPT, batch: Any) -> int:
    """Bytes that autograd keeps of the blocks from a forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        hidden = model.train().hidden(batch.inputs, lengths=batch.lengths)
    del hidden
    return sum(kept.values())


@pytest.mark.parametrize("batch", [pack(make_samples(LENGTHS)), pad(make_samples(LENGTHS))], ids=["packed", "padded"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_checkpointed_gradients_are_the_same(kind, every, batch):
    expected = gradients(MODELS[kind](), batch)
    model = MODELS[kind]()
    checkpoint_blocks(model, every)
    for found, wanted in zip(gradients(model, batch), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_more_blocks_are_checkpointed_the_less_is_kept():
    batch = pack(make_samples(LENGTHS))
    kept = {0: saved_bytes(tiny_model(n_layer=4), batch)}
    for every in (1, 2):
        model = tiny_model(n_layer=4)
        checkpoint_blocks(model, every)
        kept[every] = saved_bytes(model, batch)
    assert kept[1] < kept[2] < kept[0]
    assert kept[2] == pytest.approx((kept[0] + kept[1]) / 2, rel=0.1)
    assert kept[1] < kept[0] / 4


def test_restoring_gives_the_blocks_back():
    model = tiny_model()
    compile_blocks(model, torch.device("cpu"), backend="eager")
    checkpoint_blocks(model, 1)
    assert model.transformer.h[0].forward != Block.forward.__get__(model.transformer.h[0])
    restore(model)
    assert model.transformer.h[0].forward == Block.forward.__get__(model.transformer.h[0])
    assert not any({"forward", "attend", "replaced"} & set(vars(module)) for module in model.modules())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_offloaded_gradients_are_the_same(kind, checkpointed, monkeypatch):
    """On a CPU the host's memory is the same memory, but what is saved is copied all the same. (A copy may lie at
    another distance from a cache line's start than what it is of, and be added up in another order.)"""
    monkeypatch.setattr(blocks, "MOVED_BYTES", 0)
    batch = pack(make_samples(LENGTHS))
    expected = gradients(MODELS[kind](), batch)
    model = MODELS[kind]()
    if checkpointed:
        checkpoint_blocks(model, 1)
    for found, wanted in zip(gradients(model, batch, offload=True), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_what_is_saved_is_moved_but_for_parameters_and_small_tensors(monkeypatch):
    monkeypatch.setattr(blocks, "MOVED_BYTES", 1024)
    model = tiny_model()
    offload = Offload(model)
    with offload:
        weight = model.lm_head.weight
        large, small = torch.ones(16, 16), torch.ones(4)
        for tensor, moves in ((large, True), (small, False), (weight, False), (weight.t(), False)):
            device, kept = offload.pack_hook(tensor)
            assert (kept.data_ptr() != tensor.data_ptr()) == moves
            assert torch.equal(offload.unpack_hook((device, kept)), tensor)


# ----------------------------------------------------------------------------------------------------- compiling


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def batches(count: int) -> list[Any]:
    """Packed ones, with other lengths each."""
    found = []
    for number in range(count):
        draw = random.Random(number)
        lengths = [draw.randint(3, 20) for _ in range(draw.randint(2, 5))]
        found.append(pack(make_samples(lengths, seed=number)))
    return found


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what its own graph breaks do
@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("LoRA with dropout", "mixture"))]
)
def test_compiled_blocks_compute_the_same_and_stop_recompiling(kind, fresh_compiler):
    model, oracle = MODELS[kind](), MODELS[kind]()
    compile_blocks(model, torch.device("cpu"), backend="eager")
    counts = []
    for batch in batches(8):
        for found, wanted in zip(gradients(model, batch), gradients(oracle, batch), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        counts.append(graphs())
    assert 0 < counts[-1] <= 4 * counts[0]
    assert counts[2:] == [counts[2]] * 6  # compiled for any length by then


@pytest.mark.filterwarnings("ignore")
def test_all_blocks_share_one_compilation(fresh_compiler):
    found = []
    for n_layer in (1, 4):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = tiny_model(n_layer=n_layer)
        compile_blocks(model, torch.device("cpu"), backend="eager")
        gradients(model, batches(1)[0])
        found.append(graphs())
    assert found[0] == found[1] > 0


@pytest.mark.filterwarnings("ignore")
def test_compiling_and_checkpointing_go_together(fresh_compiler):
    batch = pack(make_samples(LENGTHS))
    expected = gradients(MODELS["full"]().double(), batch)
    model = MODELS["full"]().double()
    compile_blocks(model, torch.device("cpu"), backend="aot_eager")
    checkpoint_blocks(model, 1)
    for found, wanted in zip(gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_compiler_computes_the_same(fresh_compiler):
    model, oracle = MODELS["full"](), MODELS["full"]()
    compile_blocks(model, torch.device("cpu"))
    for batch in batches(3):
        for found, wanted in zip(gradients(model, batch), gradients(oracle, batch), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("device", "sentence"), [("mps", "no compiler for mps"), ("cpu", "needs a C.. compiler")])
def test_without_a_compiler_it_is_refused(device, sentence, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LitGPTError, match=sentence):
        compile_blocks(tiny_model(), torch.device(device))
