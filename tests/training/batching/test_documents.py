"""Documents of a packed block against the same documents one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from litgpt.errors import LitGPTError
from litgpt.training.batching.documents import Documents, by_documents
from litgpt.training.batching.packing import DOCUMENTS, IGNORED, pack, target_count
from litgpt.training.loss import NextToken
from tests.training.runs import tiny_model

START, END = 1, 2
TEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15], [16]]

KINDS: dict[str, tuple[int | None, int | None, list[list[int]]]] = {
    "an end token": (None, END, [[*text, END] for text in TEXTS]),
    "a start token": (START, None, [[START, *text] for text in TEXTS]),
    "both": (START, END, [[START, *text, END] for text in TEXTS]),
}


def blocks(ids: list[int]) -> list[dict[str, Tensor]]:
    stream = torch.tensor(ids)
    return [{"input_ids": stream, "labels": stream}]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_documents_one_by_one(kind):
    start, end, documents = KINDS[kind]
    model = tiny_model().double()
    objective = NextToken(model)
    results = []
    for samples in (
        [Documents(blocks([token for document in documents for token in document]), start, end)[0]],
        [sample for document in documents for sample in blocks(document)],
    ):
        model.zero_grad()
        packed = pack(samples)
        loss = objective(packed.inputs, packed.targets, packed.lengths)
        loss.backward()
        grads = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results.append((sum(map(target_count, samples)), loss.detach(), grads))
    assert results[0][0] == results[1][0] == sum(map(len, documents)) - len(documents)
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_token_that_starts_and_ends_documents_is_learned_as_the_end():
    (sample,) = blocks([2, 5, 6, 2, 7, 8, 2])
    found = Documents([sample], 2, 2)[0]
    assert found[DOCUMENTS].tolist() == [3, 3]
    assert found["labels"].tolist() == [2, 5, 6, 2, 7, 8, 2]


def test_a_block_may_begin_and_end_within_a_document():
    found = Documents(blocks([5, 6, END, 7, 8, 9]), None, END)[0]
    assert found[DOCUMENTS].tolist() == [3, 2]
    assert found["labels"].tolist() == [5, 6, END, IGNORED, 8, 9]


@pytest.mark.parametrize("ids", [[5], [5, END], [END, END, END], [5, 6]])
def test_lengths_always_cover_the_inputs(ids):
    found = Documents(blocks(ids), None, END)[0]
    packed = pack([found])
    assert sum(packed.lengths) == packed.inputs.numel() == max(1, len(ids) - 1)


def test_samples_may_be_cut():
    found = Documents(blocks([5, 6, END, 7, 8, END, 9]), None, END)[0]
    assert pack([found], limit=4).lengths == (3, 1)
    assert pack([found], limit=3).lengths == (3,)


def test_the_samples_learn_which_epoch_it_is():
    class Redrawn(list):
        def epoch(self, n: int) -> None:
            self.n = n

    samples = Redrawn(blocks([5, 6]))
    Documents(samples, None, END).epoch(3)
    assert samples.n == 3
    Documents(blocks([5, 6]), None, END).epoch(3)


class Tokenizer:
    bos_id = eos_id = None


@pytest.mark.parametrize(("tokenizer", "why"), [(None, "there is no tokenizer"), (Tokenizer(), "neither a start nor")])
def test_without_a_mark_there_are_no_documents(tokenizer, why):
    with pytest.raises(LitGPTError, match=why):
        by_documents(blocks([5, 6]), tokenizer)


def test_without_samples_there_is_nothing_to_tell_apart():
    assert by_documents(None, None) is None
