"""Operations, time and Chinchilla's optimum, held to nanoGPT's published figures."""

from __future__ import annotations

import pytest
import torch

from litgpt.args import TrainArgs
from litgpt.config import Config
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full
from litgpt.training.metrics.flops import (
    days,
    flops_per_token,
    measured_flops,
    numbers_in,
    optimal_model,
    optimal_tokens,
    peak_flops,
)
from litgpt.training.planner.memory_estimate import RunSpec, estimate_memory
from tests.training.runs import tiny_config, tiny_model

GPT2 = dict(
    block_size=1024,
    n_layer=12,
    n_head=12,
    n_embd=768,
    vocab_size=50257,
    padded_vocab_size=50257,
    bias=False,
    norm_bias=False,
    parallel_residual=False,
    learned_positions=True,
    tie_embeddings=True,
)


@pytest.fixture(scope="module")
def gpt2() -> GPT:
    return GPT.skeleton(Config(**GPT2))


def test_gpt2_has_its_published_parameters(gpt2):
    assert sum(numbers_in(gpt2).values()) == 124_337_664


def test_gpt2s_operations_are_the_published_ones(gpt2):
    flops = flops_per_token(gpt2, 1024)
    assert flops.forward * 1024 == 291_648_307_200
    assert flops.total * 1024 == 874_944_921_600
    palm = 6 * (124_337_664 - 1024 * 768) + 12 * 12 * 12 * 64 * 1024
    assert palm * 1024 == 875_062_886_400
    assert flops.total / palm == pytest.approx(1, abs=2e-4)


def test_utilization_of_an_a100_is_the_published_one(gpt2):
    flops = flops_per_token(gpt2, 1024).total * 100 * 1024
    assert flops / 0.755 / 312e12 == pytest.approx(0.3714, abs=5e-5)


def test_days_for_300_billion_tokens_are_the_published_ones():
    assert days(6 * 124_337_664 * 300e9, peak=312e12, share=0.3, devices=8) == pytest.approx(3.46, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "positions", "published"),
    [
        (dict(bias=True, norm_bias=True), 1024 * 768, 123_653_376),
        (
            dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, padded_vocab_size=65),
            256 * 384,
            10_646_784,
        ),
    ],
)
def test_models_without_their_positions_have_the_published_parameters(changes, positions, published):
    found = sum(numbers_in(GPT.skeleton(Config(**{**GPT2, **changes}))).values())
    assert found - positions == published


def test_a_checkpoint_is_twelve_bytes_a_parameter(gpt2):
    train = TrainArgs(global_batch_size=1, micro_batch_size=1)
    found = estimate_memory(RunSpec(Config(**GPT2), Full(), train, "AdamW", "32-true", torch.device("cpu"), length=8))
    parameters = sum(numbers_in(gpt2).values())
    assert found.saved == 4 * parameters
    assert found.saved + found.memory.optimizer == pytest.approx(12 * parameters, rel=1e-5)
    assert 1_542_470_366 / (found.saved + found.memory.optimizer) == pytest.approx(1.0338, abs=5e-5)


def test_chinchillas_tokens_are_the_published_ones():
    assert optimal_tokens(124e6) == pytest.approx(2.292e9, rel=5e-4)


def expected_loss(parameters: float, tokens: float) -> float:
    """Chinchilla's loss of a model after so many tokens, nats per token."""
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def test_chinchillas_optimum_is_the_published_one():
    """Published: the best of a grid of models, each 12 % larger than the one before."""
    flops = 2.21e19
    grid = [10 ** (7 + step / 20) for step in range(81)]
    best = min(grid, key=lambda parameters: expected_loss(parameters, flops / 6 / parameters))
    assert best == pytest.approx(316.23e6, rel=1e-4)
    assert flops / 6 / best == pytest.approx(11.65e9, rel=1e-3)
    parameters, tokens = optimal_model(flops)
    assert best / 1.06 < parameters < best * 1.06 and parameters * tokens * 6 == pytest.approx(flops)
    assert all(expected_loss(parameters, tokens) <= expected_loss(n, flops / 6 / n) for n in grid)


def test_operations_are_six_for_each_weight_of_a_product_and_attention():
    model = tiny_model()
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    weights -= model.transformer.wte.weight.numel()
    assert flops_per_token(model, 10).total == 6 * weights + 12 * 2 * 16 * 10


def test_a_frozen_weight_has_no_gradient_to_compute():
    model, method = tiny_model(), LoRA()
    full = flops_per_token(model, 10)
    method.attach(model)
    with_method = flops_per_token(model, 10)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() > 1)
    assert with_method.forward == full.forward + 2 * trained
    attention = 4 * 2 * 16 * 10
    assert with_method.backward == with_method.forward + 2 * trained + attention
    assert with_method.backward < 2 * with_method.forward


def test_only_the_experts_a_token_is_sent_to_count():
    sizes = dict(mlp_class_name="LLaMAMoE", n_expert=8, n_expert_per_token=2)
    few, all_of_them = (GPT.skeleton(tiny_config(**{**sizes, "n_expert_per_token": n})) for n in (2, 8))
    experts = sum(p.numel() for p in few.parameters() if p.dim() == 3)
    difference = flops_per_token(all_of_them, 10).forward - flops_per_token(few, 10).forward
    assert difference == 2 * experts * 6 / 8


def test_the_peak_of_a_cpu_is_unknown_and_measured():
    assert peak_flops(torch.device("cpu"), torch.float32) is None
    assert measured_flops(torch.device("cpu"), torch.float32, size=64, seconds=0.001) > 1e6
