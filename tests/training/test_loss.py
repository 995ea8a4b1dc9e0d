"""The chunked loss against the obvious one, in float64; and what training minimises against the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.lora import LoRA
from litgpt.training import loss as loss_module
from litgpt.training.loss import (
    IGNORED,
    Buffers,
    NextToken,
    Terms,
    head_cross_entropy,
    head_log_probs,
    linear_cross_entropy,
    linear_log_probs,
    token_log_probs,
)
from tests.training.runs import VOCABULARY, tiny_model

N, C, V = 37, 8, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 16 rows, so that three are needed."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 16 * V * 8)


def problem(dtype: torch.dtype = torch.float64, masked: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(N, C), torch.randn(V, C), torch.randn(V)
    targets = torch.randint(V, (N,))
    if masked:
        targets[::3] = IGNORED
    return *(tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)), targets


def oracle(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms = Terms()) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if terms.cap is not None:
        logits = terms.cap * torch.tanh(logits / terms.cap)
    if terms.dft:  # TRL's: each token's loss times its probability, detached
        each = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return (each * (-each).exp().detach())[targets != IGNORED].sum()
    loss = F.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=terms.label_smoothing
    )
    return loss + terms.z_loss * logits[targets != IGNORED].logsumexp(-1).square().sum()


TERMS = {
    "plain": Terms(),
    "capped": Terms(cap=3.0),
    "z-loss": Terms(z_loss=0.1),
    "smoothed": Terms(label_smoothing=0.2),
    "all": Terms(cap=3.0, z_loss=0.1, label_smoothing=0.2),
    "dft": Terms(cap=3.0, dft=True),
}


@pytest.mark.parametrize("case", TERMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_value_and_gradients_are_those_of_the_full_logits(case, masked, biased):
    hidden, weight, bias, targets = problem(masked=masked)
    wanted = [hidden, weight, bias] if biased else [hidden, weight]
    expected = oracle(hidden, weight, bias if biased else None, targets, TERMS[case])
    expected_gradients = torch.autograd.grad(expected * 0.25, wanted)
    found = linear_cross_entropy(hidden, weight, targets, bias if biased else None, TERMS[case])
    gradients = torch.autograd.grad(found * 0.25, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_logits_far_from_zero_lose_nothing():
    hidden, weight, _, targets = problem(torch.float32)
    far = (hidden * 300).detach().requires_grad_()
    found = linear_cross_entropy(far, weight, targets)
    torch.testing.assert_close(found, oracle(far, weight, None, targets), rtol=1e-6, atol=0)


def test_buffers_are_reused_and_change_nothing():
    hidden, weight, _, targets = problem(torch.float32)
    buffers = Buffers()
    first = linear_cross_entropy(hidden, weight, targets, buffers=buffers)
    place = buffers.get("products", (1, 1), hidden, torch.float32).data_ptr()
    again = linear_cross_entropy(hidden, weight, targets, buffers=buffers)
    assert torch.equal(first, again)
    assert buffers.get("products", (1, 1), hidden, torch.float32).data_ptr() == place


@pytest.mark.parametrize("case", TERMS)
def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same(case):
    hidden, weight, _, targets = problem()
    (expected,) = torch.autograd.grad(oracle(hidden, weight, None, targets, TERMS[case]), [hidden])
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets, terms=TERMS[case]).backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert weight.grad is None


def test_without_gradients_only_the_value_is_made():
    hidden, weight, _, targets = problem()
    with torch.no_grad():
        found = linear_cross_entropy(hidden, weight, targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, oracle(hidden, weight, None, targets))


def test_all_targets_ignored_is_zero_with_zero_gradients():
    hidden, weight, _, targets = problem()
    found = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    found.backward()
    assert found == 0
    assert not hidden.grad.any() and not weight.grad.any()


def test_a_tied_weight_sums_its_two_gradients():
    _, weight, _, targets = problem()
    ids = torch.arange(N) % V
    (expected,) = torch.autograd.grad(oracle(weight[ids], weight, None, targets), [weight])
    linear_cross_entropy(weight[ids], weight, targets).backward()
    torch.testing.assert_close(weight.grad, expected)


def test_bfloat16_is_accumulated_in_float32():
    hidden, weight, _, targets = problem(torch.bfloat16, masked=False)
    exact = oracle(hidden.double(), weight.double(), None, targets)
    found = linear_cross_entropy(hidden, weight, targets)
    found.backward()
    assert found.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=3e-3, atol=0)
    (expected,) = torch.autograd.grad(exact, [weight])
    torch.testing.assert_close(weight.grad, expected, rtol=0.05, atol=0.05)


def test_autocast_computes_products_in_its_dtype_and_gradients_in_the_parameters():
    hidden, weight, _, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, targets)
    found.backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    expected = oracle(hidden, weight, None, targets)
    assert found != expected
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_the_gradients_serve_one_backward_pass_only():
    hidden, weight, _, targets = problem()
    found = linear_cross_entropy(hidden, weight, targets)
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        found.backward()


@pytest.mark.parametrize("terms", [Terms(), Terms(z_loss=0.1, label_smoothing=0.2)])
@pytest.mark.parametrize("ignored", [False, True])
def test_any_head_module_has_the_same_loss(ignored, terms):
    hidden, weight, _, targets = problem()
    if ignored:
        targets = torch.full_like(targets, IGNORED)
    head = nn.Linear(C, V, bias=False, dtype=torch.float64)
    head.weight = nn.Parameter(weight.detach().clone())
    found = head_cross_entropy(lambda rows: head(rows), hidden, targets, V, terms)
    found.backward()
    full = hidden.detach().requires_grad_()
    expected = oracle(full, weight, None, targets, terms)
    expected.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden.grad, full.grad, rtol=1e-6, atol=1e-6)
    if ignored:
        assert not head.weight.grad.any()  # but it is there: ranks share the gradients of the same parameters
    else:
        torch.testing.assert_close(head.weight.grad, weight.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slice_rows", [7, 50])
def test_narrow_gradients_come_from_slices(monkeypatch, slice_rows):
    """A 16-bit head's gradient is summed in float32, in slices that are given up one by one."""
    monkeypatch.setattr(loss_module, "SLICE", slice_rows)
    monkeypatch.setattr(loss_module, "RETURNED_BYTES", 2 * slice_rows * C * 4)
    hidden, weight, _, targets = problem(torch.bfloat16)
    linear_cross_entropy(hidden, weight, targets).mul(0.5).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    oracle(*exact, None, targets).mul(0.5).backward()
    for tensor, expected in zip((hidden, weight), exact, strict=True):
        torch.testing.assert_close(tensor.grad.double(), expected.grad, rtol=0.05, atol=0.02)


def test_no_tensor_of_all_logits_is_made():
    hidden, weight, _, targets = problem(torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        linear_cross_entropy(hidden, weight, targets).backward()
    assert largest < N * V


# ----------------------------------------------------------------------------------- the model and its loss

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": dict(tie_embeddings=True),
    "biased": dict(lm_head_bias=True),
    "capped": dict(final_logit_softcapping=2.0),
    "divided and biased": dict(logits_divisor=8.0, lm_head_bias=True, final_logit_softcapping=2.0),
}


@pytest.mark.parametrize("method", [None, LoRA(r=2, dropout=0.0), LoRA(r=2, dropout=0.0, head=True)])
@pytest.mark.parametrize("case", HEADS)
def test_it_is_the_cross_entropy_of_the_models_logits(case, method):
    model = tiny_model(**HEADS[case]).double()
    if method is not None:
        method.attach(model)
        model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(VOCABULARY, (2, 9))
    targets = torch.randint(VOCABULARY, (2, 9))
    targets[0, :4] = -100
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
    found = NextToken(model)(ids, targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    pairs = zip(torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [None, LoRA(r=2, dropout=0.0, head=True)])
def test_z_loss_and_smoothing_are_part_of_training_and_not_of_validation(method):
    model = tiny_model(final_logit_softcapping=5.0)
    if method is not None:
        method.attach(model)
    ids = torch.randint(VOCABULARY, (2, 9))
    targets = torch.randint(VOCABULARY, (2, 9))
    logits = model(ids).flatten(0, 1)
    plain = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    whole = F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=0.1)
    whole = whole + 0.01 * logits.logsumexp(-1).square().sum()
    objective = NextToken(model, z_loss=0.01, label_smoothing=0.1).eval()
    torch.testing.assert_close(objective(ids, targets), plain)
    torch.testing.assert_close(objective.train()(ids, targets), whole)


# ------------------------------------------------------------------------------------------ log-probabilities


def log_probs_oracle(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None) -> Tensor:
    """From all logits."""
    logits = F.linear(hidden, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    found = logits.log_softmax(-1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets == IGNORED, torch.zeros_like(found), found)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("trained", ["hidden", "hidden weight", "hidden weight bias", "weight", ""])
def test_log_probabilities_and_their_gradients_are_those_of_the_full_logits(cap, trained):
    *tensors, targets = problem()
    for name, tensor in zip(("hidden", "weight", "bias"), tensors, strict=True):
        tensor.requires_grad_(name in trained.split())
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    factors = torch.linspace(-2, 3, N, dtype=torch.float64)  # each token's is another
    hidden, weight, bias = tensors
    expected = log_probs_oracle(hidden, weight, bias, targets, cap)
    found = linear_log_probs(hidden, weight, targets, bias, Terms(cap=cap))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if wanted:
        gradients = torch.autograd.grad((found.square() * factors).sum(), wanted)
        for gradient, other in zip(
            gradients, torch.autograd.grad((expected.square() * factors).sum(), wanted), strict=True
        ):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_log_probabilities_of_a_head_that_is_more_than_a_weight():
    hidden, weight, _, targets = problem()
    factors = torch.linspace(-2, 3, N, dtype=torch.float64)
    found = head_log_probs(lambda rows: F.linear(rows, weight), hidden, targets, V)
    expected = log_probs_oracle(hidden, weight, None, targets, None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for gradient, other in zip(
        torch.autograd.grad((found * factors).sum(), [hidden, weight]),
        torch.autograd.grad((expected * factors).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_head", [False, True])
def test_log_probabilities_without_a_target_are_zero_and_stay_connected(with_head):
    hidden, weight, _, targets = problem()
    none = torch.full_like(targets, IGNORED)
    head = lambda rows: F.linear(rows, weight)  # noqa: E731
    found = head_log_probs(head, hidden, none, V) if with_head else linear_log_probs(hidden, weight, none)
    assert not found.any()
    found.sum().backward()
    assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("method", [None, LoRA(r=2, head=True)])
def test_log_probabilities_are_those_of_the_models_own_logits(method):
    model = tiny_model(final_logit_softcapping=5.0)
    if method is not None:
        method.attach(model)
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids).log_softmax(-1).gather(2, ids[..., None]).flatten()
    torch.testing.assert_close(token_log_probs(model, ids, ids), expected, rtol=1e-5, atol=1e-5)
