"""How many tokens a step computes."""

from __future__ import annotations

import pytest

from litgpt.training.batching.batches import Batching
from tests.training.runs import make_samples


@pytest.mark.parametrize(("packing", "expected"), [(True, 4 + 16 + 8), (False, 2 * 16 + 8)])
def test_padded_tokens_are_what_is_computed_with_the_padding(packing, expected):
    batch = Batching(2, None, packing).cut(make_samples([5, 17, 9]), ranks=1)
    cuts = list(batch.of_rank(0))
    assert batch.padded_tokens == sum(cut.inputs.numel() for cut in cuts)
    if packing:
        assert batch.padded_tokens == expected


def test_a_rank_without_samples_computes_one_token():
    batch = Batching(1, None, True).cut(make_samples([5]), ranks=2)
    assert batch.padded_tokens == sum(cut.inputs.numel() for rank in (0, 1) for cut in batch.of_rank(rank)) == 5
