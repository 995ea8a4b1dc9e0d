"""A training step never waits for its device: on `meta`, whose tensors have no values, to ask for one is an error."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from litgpt.args import TrainArgs
from litgpt.lora import LoRA
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import one_shape
from litgpt.training.blocks import checkpoint_blocks
from litgpt.training.loss import NextToken
from litgpt.training.optim.optimizers import optimizer_for
from litgpt.training.schedule import Counters
from litgpt.training.step import OptimizerStep
from tests.training.runs import make_samples, tiny_model

EXPERTS = dict(mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2, moe_intermediate_size=16)
LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
MODELS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "window": {"sliding_window_size": 4, "sliding_window_indices": [1, 0], "norm_qk": True},
    "capped": {"attention_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    "sinks": {"attention_sinks": True},
    "latent": {"latent_attention": LATENT, "n_query_groups": 2},
    "experts": EXPERTS,
    "grouped-experts": {**EXPERTS, "n_expert_groups": 2, "n_topk_groups": 1, "n_topk_scores_per_group": 2},
}


class OnMeta:
    """What a step needs of Fabric, on a device that can't be waited for."""

    device, world_size, global_rank = torch.device("meta"), 1, 0
    strategy = SimpleNamespace(precision=SimpleNamespace(precision="bf16-true"))

    def to_device(self, parts):
        return tuple(part.to("meta") if isinstance(part, torch.Tensor) else part for part in parts)

    def no_backward_sync(self, module, enabled):
        return nullcontext()

    def backward(self, loss):
        loss.backward()

    def clip_gradients(self, module, optimizer, max_norm, error_if_nonfinite):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


@pytest.fixture(autouse=True)
def autocast_knows_meta(monkeypatch):
    """As of any device for which it is off."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *more, **how: nullcontext() if kind == "meta" else autocast(kind, *more, **how)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind != "meta" and enabled(kind))


def take_step(method: LoRA | None = None, masked: bool = False, checkpointed: bool = False, model=None, **settings):
    torch.manual_seed(0)
    model = tiny_model(**model or {})
    if method is not None:
        method.attach(model)
    model = model.to("meta", torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = method is None or method.owns(name)
    if checkpointed:
        checkpoint_blocks(model, 1)
    train = TrainArgs(global_batch_size=6, micro_batch_size=2, max_norm=1.0, **settings)
    objective = NextToken(model, train.z_loss, train.label_smoothing).train()
    optimizer = optimizer_for(model, "AdamW", train, "bf16-true")
    batch = Batching.of(train).cut(make_samples([9, 5, 17, 12, 12, 3], masked=masked), 1)
    run = SimpleNamespace(model=model, fabric=OnMeta(), train=train)
    step = OptimizerStep(run, objective, SimpleNamespace(optimizer=optimizer, step=optimizer.step,
                                                        zero_grad=optimizer.zero_grad), print)  # fmt: skip
    total, _ = step(batch, Counters(), wants_norm=False)
    assert total.device.type == "meta"
    assert all(state for state in optimizer.state.values())
    assert len(optimizer.state) == sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_any_model_never_waits(name):
    take_step(model=MODELS[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"masked": True},
        {"masked": True, "packing": False},
        {"checkpointed": True, "z_loss": 1e-4, "label_smoothing": 0.1},
        {"method": LoRA(r=2, dropout=0.1, key=True, mlp=True, projection=True), "masked": True},
        {"method": LoRA(r=2, head=True, dora=True), "masked": True},
        {"method": LoRA(r=2, mlp=True), "model": EXPERTS},
    ],
    ids=str,
)
def test_a_step_of_any_kind_never_waits(settings):
    take_step(**settings)


def test_the_check_finds_a_wait(monkeypatch):
    monkeypatch.setattr(NextToken, "forward", lambda self, inputs, *rest: inputs.sum().item())
    with pytest.raises(RuntimeError):
        take_step()


def test_samples_of_one_length_make_micro_batches_that_look_alike():
    assert one_shape(make_samples([8, 8, 8]))
    assert not one_shape(make_samples([8, 8, 7]))
    sample = {**make_samples([8])[0], "documents": torch.tensor([3, 4])}
    assert not one_shape([sample, sample])
