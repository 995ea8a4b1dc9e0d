"""Rounding to nearest, GPTQ and AWQ: what they promise of the layer's output, held to plain float64 arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.quantize.calibration import each_block, quantizable
from litgpt.quantize.methods import measure_importance, round_model
from litgpt.quantize.rounding import Grid, gptq, round_to_fp8, round_to_nearest

GRIDS = [
    Grid(4, 32, True, torch.float32),
    Grid(4, 32, False, torch.float16),
    Grid(8, None, True, torch.bfloat16),
    Grid(3, 64, False, torch.float32),
]


def drawn(rows: int = 48, columns: int = 192, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose columns depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    sizes = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    return weight, torch.randn(tokens, columns, generator=generator) @ (torch.eye(columns) + mixing) * sizes


def lost(weight: Tensor, made: Tensor, x: Tensor) -> float:
    return float((x.double() @ (weight - made).double().t()).square().mean())


@pytest.mark.parametrize("grid", GRIDS)
def test_each_weight_becomes_the_nearest_number_of_its_group(grid: Grid):
    weight, _ = drawn()
    made = round_to_nearest(weight, grid)
    size = grid.group_size or weight.size(1)
    scales, zeros = (part.double().repeat_interleave(size, 1) for part in (made.scales, made.zeros))
    choices = (torch.arange(grid.top + 1).double() - zeros[..., None]) * scales[..., None]  # (O, I, codes)
    nearest = (choices - weight.double()[..., None]).abs().amin(-1)
    torch.testing.assert_close((made.dequantized().double() - weight.double()).abs(), nearest, rtol=1e-4, atol=1e-5)
    assert made.scales.dtype == grid.dtype and made.codes.max() <= grid.top


@pytest.mark.parametrize("grid", GRIDS)
def test_gptq_changes_the_output_less_than_rounding_to_nearest(grid: Grid):
    weight, x = drawn()
    by_gptq = gptq(weight, x.t() @ x, grid)
    ratio = lost(weight, by_gptq.dequantized(), x) / lost(weight, round_to_nearest(weight, grid).dequantized(), x)
    assert ratio < 0.8


def slow_gptq(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Column by column as the paper's equations read, with the inverse made anew for what is left (no Cholesky)."""
    left, hessian = weight.double().clone(), hessian.double()
    hessian = hessian + torch.eye(len(hessian)) * 0.01 * hessian.diagonal().mean()
    made = torch.zeros_like(left)
    size = grid.group_size or weight.size(1)
    for column in range(weight.size(1)):
        if column % size == 0:
            of_group = round_to_nearest(left[:, column : column + size].float(), replace(grid, group_size=None))
        scale, zero = of_group.scales[:, 0].double(), of_group.zeros[:, 0].double()
        code = ((left[:, column] / scale).round() + zero).clamp(0, grid.top)
        made[:, column] = (code - zero) * scale
        inverse = torch.linalg.inv(hessian[column:, column:])
        error = (left[:, column] - made[:, column]) / inverse[0, 0]
        left[:, column:] -= torch.outer(error, inverse[0])
    return made


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[1], Grid(4, 96, True, torch.float32)])
def test_gptq_equals_its_equations(grid: Grid):
    weight, x = drawn(rows=6)
    hessian = x.double().t() @ x.double()
    made, slow = gptq(weight, hessian, grid).dequantized().double(), slow_gptq(weight, hessian, grid)
    assert (made - slow).abs().gt(1e-3).double().mean() < 0.05  # a code on the edge falls either way
    assert lost(weight, made, x) == pytest.approx(lost(weight, slow, x), rel=0.05)


def test_gptq_leaves_columns_that_are_never_used_alone():
    weight, x = drawn()
    x[:, 5] = 0
    made = gptq(weight, x.t() @ x, GRIDS[0]).dequantized()
    assert made[:, 5].abs().max() == 0 and torch.isfinite(made).all()


def test_activations_that_are_no_numbers_are_told():
    weight, x = drawn()
    with pytest.raises(LitGPTError, match="no numbers"):
        gptq(weight, x.t() @ x * float("nan"), GRIDS[0])


def test_groups_that_do_not_come_out_even_are_told():
    with pytest.raises(LitGPTError, match="192 columns.*groups of 128"):
        round_to_nearest(drawn()[0], Grid(4, 128, True, torch.float32))


def test_important_columns_are_rounded_with_less_error():
    weight, x = drawn()
    grid = Grid(4, 96, True, torch.float32)
    plain, weighted = round_to_nearest(weight, grid), round_to_nearest(weight, grid, x.square().mean(0))
    errors = [((made.dequantized() - weight).square() * x.square().mean(0)).sum() for made in (plain, weighted)]
    assert errors[1] < 0.95 * errors[0]


def test_fp8_loses_no_more_than_its_mantissa():
    weight, _ = drawn()
    made = round_to_fp8(weight)
    assert made.codes.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(made.codes.float() * made.scales, weight, rtol=2**-4, atol=2e-3)


@pytest.fixture
def model() -> GPT:
    sizes = dict(n_layer=2, n_embd=32, n_head=4, n_query_groups=2, intermediate_size=48, vocab_size=90, block_size=64)
    config = Config(**sizes, rotary_percentage=1.0, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False)
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.2)
            else:
                parameter.copy_(torch.rand_like(parameter) * 4 + 0.1)
    return model


SAMPLES = [torch.arange(2 * 24).view(2, 24) % 90, torch.arange(24).view(1, 24) * 7 % 90]


def test_each_block_sees_what_the_model_gives_it(model: GPT):
    with torch.inference_mode():
        expected = [model.hidden(sample) for sample in SAMPLES]
        states = [block.run() for block in each_block(model, SAMPLES)][-1]
        for state, hidden in zip(states, expected, strict=True):
            assert torch.equal(model.transformer.ln_f(state), hidden)
    statistics = next(iter(each_block(model, SAMPLES))).statistics["transformer.h.0.attn.qkv"]
    x = torch.cat([model.transformer.h[0].norm_1(model.embed(s, torch.arange(24))).flatten(0, 1) for s in SAMPLES])
    torch.testing.assert_close(statistics.importance(), x.square().mean(0))
    assert statistics.n_rows == 72


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_models_own_weights_become_the_rounded_ones_and_its_answers_stay_near(method: str, model: GPT):
    with torch.inference_mode():
        before = model(SAMPLES[0])
    names = [f"{name}.weight" for name in quantizable(model) if name != "lm_head"]
    grid = Grid(8, 16, True, torch.float32)
    made = round_model(model, SAMPLES, method, dict.fromkeys(names, grid), lambda number, count: None)
    state = model.state_dict()
    assert set(made.rounded) == set(names)
    for name, rounded in made.rounded.items():
        assert torch.equal(state[name], rounded.dequantized())
    assert all(torch.equal(state[name], tensor) for name, tensor in made.changed.items())
    assert bool(made.changed) == (method == "awq")
    with torch.inference_mode():
        torch.testing.assert_close(model(SAMPLES[0]), before, rtol=0.1, atol=0.1)


def test_importance_is_measured_of_every_linear_layer(model: GPT):
    found = measure_importance(model, SAMPLES, lambda number, count: None)
    assert set(found) == {f"{name}.weight" for name in quantizable(model) if name != "lm_head"}
    assert all((one > 0).all() for one in found.values())
