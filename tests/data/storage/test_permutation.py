"""Orders that are computed."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from litgpt.data.storage.permutation import ChunkedOrder, Permutation


@given(size=st.integers(1, 700), seed=st.integers(0, 2**63 - 1))
def test_every_number_comes_once_drawn_or_computed(size, seed):
    for drawn in (0, size):
        assert sorted(Permutation(size, seed, drawn)) == list(range(size))


def test_a_small_order_is_torchs():
    drawn = torch.randperm(50, generator=torch.Generator().manual_seed(7))
    assert Permutation(50, 7)[:] == drawn.tolist() and Permutation(50, 7)[-1] == drawn[-1]
    with pytest.raises(IndexError):
        Permutation(50, 7)[50]


def test_a_computed_order_looks_random():
    """Where a number goes is uniform over seeds, and neighbours part: chi-square and correlation within four sigma."""
    size, seeds = 16, 4000
    places = Counter(
        (place, number) for seed in range(seeds) for place, number in enumerate(Permutation(size, seed, 0))
    )
    expected = seeds / size
    chi = sum((places[place, number] - expected) ** 2 / expected for place in range(size) for number in range(size))
    freedom = (size - 1) ** 2
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5
    order = torch.tensor(Permutation(20_000, 1, 0)[:], dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1]) < 4 / 20_000**0.5
    assert abs(torch.corrcoef(torch.stack([order, torch.arange(20_000.0).double()]))[0, 1]) < 4 / 20_000**0.5


def test_a_large_order_takes_no_memory():
    tracemalloc.start()
    order = Permutation(10**12, 3)
    assert len({order[place] for place in range(0, 10**12, 10**10)}) == 100
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(sum), seed=st.integers(0, 2**63 - 1))
def test_chunks_are_gone_through_one_after_the_other(sizes, seed):
    order = ChunkedOrder(sizes, seed)
    assert sorted(order) == list(range(sum(sizes))) and len(order) == sum(sizes)
    chunk_of = [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
    seen = [chunk_of[number] for number in order]
    assert len([1 for one, other in itertools.pairwise(seen) if one != other]) == len(set(seen)) - 1


def test_chunks_and_what_is_in_them_are_shuffled():
    order = ChunkedOrder([50] * 40, 5)[:]
    assert order[:50] != sorted(order[:50])
    assert [number // 50 for number in order[::50]] != sorted(number // 50 for number in order[::50])
    assert order != ChunkedOrder([50] * 40, 6)[:]
