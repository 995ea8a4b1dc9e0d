"""Plans of micro-batches, and packed against padded."""

from __future__ import annotations

import pytest
import torch

from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import (
    PackingPlan,
    input_length,
    pack,
    pad,
    plan_packed,
    plan_padded,
    target_count,
)
from litgpt.training.loss import IGNORED, NextToken
from tests.training.runs import LENGTHS, make_samples, tiny_model


def used(plan: PackingPlan) -> list[int]:
    return sorted(index for ranks in plan for samples in ranks for index in samples)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("capacity", [1, 30, 47, 1000])
def test_a_packed_plan_takes_every_sample_once_and_keeps_to_the_capacity(capacity, ranks):
    plan = plan_packed(LENGTHS, capacity, ranks)
    assert used(plan) == list(range(len(LENGTHS)))
    assert all(len(of_ranks) == ranks for of_ranks in plan)
    loads = [sum(LENGTHS[index] for index in samples) for of_ranks in plan for samples in of_ranks]
    assert max(loads) <= max(capacity, max(LENGTHS))


def test_blocks_of_one_length_fill_micro_batches_of_that_many():
    assert [len(samples) for ranks in plan_packed([64] * 24, 12 * 64) for samples in ranks] == [12, 12]


def test_few_samples_leave_a_rank_without():
    assert plan_packed([5], 100, ranks=2) == [[[0], []]]


def test_a_padded_plan_has_few_samples_of_like_length_each():
    plan = plan_padded(LENGTHS, 4, ranks=2)
    assert used(plan) == list(range(len(LENGTHS)))
    groups = [samples for ranks in plan for samples in ranks]
    assert max(map(len, groups)) <= 4
    assert all(len(ranks) == 2 for ranks in plan)
    assert max(LENGTHS[index] for index in groups[-1]) <= min(LENGTHS[index] for index in groups[0])


def test_packing_shifts_by_one_and_cuts():
    ids = torch.arange(10, 16)
    packed = pack([{"input_ids": ids, "labels": ids}, {"input_ids": ids[:3], "labels": ids[:3]}], limit=4)
    assert packed.inputs.tolist() == [[10, 11, 12, 13, 10, 11]]
    assert packed.targets.tolist() == [[11, 12, 13, 14, 11, 12]]
    assert packed.lengths == (4, 2)


def test_nothing_to_pack_is_one_token_without_loss():
    for make in (pack, pad):
        batch = make([])
        assert batch.inputs.numel() == 1
        assert batch.targets.tolist() == [[IGNORED]]


def test_padding_fills_with_ignored_targets():
    ids = torch.arange(10, 14)
    padded = pad([{"input_ids": ids, "labels": ids}, {"input_ids": ids[:2], "labels": ids[:2]}])
    assert padded.targets.tolist() == [[11, 12, 13], [11, IGNORED, IGNORED]]
    assert padded.lengths is None


def test_only_unmasked_labels_count_as_targets():
    (sample,) = make_samples([9], masked=True)
    assert target_count(sample) == 6
    assert target_count(sample, limit=4) == 2
    assert input_length(sample, limit=4) == 4


@pytest.mark.parametrize("window", [None, 6])
def test_packed_is_padded_is_one_by_one(window):
    model = tiny_model(sliding_window_size=window).double()
    objective = NextToken(model)
    samples = make_samples(LENGTHS, masked=True)
    results = {}
    for name, batches in {
        "packed": [pack(samples)],
        "padded": [pad(samples)],
        "one by one": [pack([sample]) for sample in samples],
    }.items():
        model.zero_grad()
        losses = [objective(batch.inputs, batch.targets, batch.lengths) for batch in batches]
        torch.stack(losses).sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results[name] = (torch.stack(losses).sum().detach(), gradients)
    for name in ("padded", "one by one"):
        torch.testing.assert_close(results["packed"], results[name], rtol=1e-9, atol=1e-9)


def test_batches_cut_the_same_tokens_packed_and_padded():
    samples = make_samples(LENGTHS, masked=True)
    packed, padded = (Batching(2, 20, packing).cut(samples, ranks=2) for packing in (True, False))
    assert (packed.tokens, packed.targets) == (padded.tokens, padded.targets)
    assert packed.tokens == sum(min(length - 1, 20) for length in LENGTHS)
    for batch in (packed, padded):
        counts = [sum(int((part.targets != IGNORED).sum()) for part in batch.of_rank(rank)) for rank in (0, 1)]
        assert sum(counts) == batch.targets
        assert len(list(batch.of_rank(0))) == len(list(batch.of_rank(1)))
