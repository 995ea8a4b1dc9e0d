"""Dropout on the CPU against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from litgpt.kernels.dropout import drop, keep_mask

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_drops_that_share_and_keeps_the_rest(dtype: torch.dtype, share: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(401, 403, dtype=dtype) + 1  # an odd number of elements, none of them zero
    kept, factor = drop(x, share)
    assert kept.dtype == dtype
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert abs((kept == 0).double().mean().item() - share) < 0.005
    assert factor == pytest.approx(1 / (1 - share), rel=2e-4)


def test_the_mean_is_torchs() -> None:
    torch.manual_seed(0)
    x = torch.rand(1_000_000)
    kept, factor = drop(x, 0.1)
    assert kept.mean() * factor == pytest.approx(F.dropout(x, 0.1).mean().item(), rel=5e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_flow_where_elements_were_kept(dtype: torch.dtype) -> None:
    x = torch.ones(50, 31, dtype=dtype, requires_grad=True)
    kept, _ = drop(x, 0.3)
    (kept * 3).sum().backward()
    assert torch.equal(x.grad, 3 * (kept != 0).to(dtype))


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    lost = (keep_mask(400_000, 65536 // 4) == 0).double()
    for distance in (1, 2, 3, 4, 64):
        together = (lost[:-distance] * lost[distance:]).mean().item()
        assert together == pytest.approx(1 / 16, abs=0.002), distance


def test_torchs_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([keep_mask(100, 20000), keep_mask(100, 20000)])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(*draw(1))


def test_infinities_that_are_dropped_are_zero() -> None:
    kept, _ = drop(torch.full((1000,), float("inf")), 0.5)
    assert set(kept.tolist()) == {0.0, float("inf")}
