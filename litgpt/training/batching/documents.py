"""Where one document ends and the next begins within a block of tokens, so that attention stays inside each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litgpt.data.storage.fingerprint import data_fingerprint
from litgpt.errors import LitGPTError
from litgpt.training.batching.packing import DOCUMENTS
from litgpt.training.loss import IGNORED

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer
    from litgpt.training.run import Samples


class Documents:
    """Samples that say which documents they hold.

    A document begins with the start token, or after the end token. The first token of a document has no loss: nothing
    before it may be looked at. Only where the same token starts and ends documents is it learned, as the end of the one
    before.
    """

    def __init__(self, dataset: Samples, start: int | None, end: int | None) -> None:
        self.dataset, self.start, self.end = dataset, start, end

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        ids, labels = sample["input_ids"], sample["labels"]
        begins = self.begins(ids)
        unknowable = begins if self.end is None else begins & (ids != self.end)
        firsts = torch.cat((torch.zeros(1, dtype=torch.long), begins[1:-1].nonzero().squeeze(1) + 1))
        lengths = torch.diff(firsts, append=torch.tensor([max(len(ids) - 1, 1)]))
        return {**sample, "labels": labels.masked_fill(unknowable, IGNORED), DOCUMENTS: lengths}

    @property
    def fingerprint(self) -> str | None:
        """The data set's."""
        return data_fingerprint(self.dataset)

    def begins(self, ids: Tensor) -> Tensor:
        """Which tokens are the first of a document, the block's own first one left out, `(T,)` bool."""
        begins = torch.zeros_like(ids, dtype=torch.bool)
        if self.start is not None:
            begins |= ids == self.start
        if self.end is not None and self.end != self.start:
            begins[1:] |= ids[:-1] == self.end
        begins[:1] = False
        return begins

    def epoch(self, n: int) -> None:
        """Tells the samples which epoch begins."""
        redraw = getattr(self.dataset, "epoch", None)
        if redraw is not None:
            redraw(n)


def by_documents(dataset: Samples | None, tokenizer: Tokenizer | None) -> Samples | None:
    """The data set with its documents told apart by the tokenizer's start and end tokens; None without a data set.

    Raises:
        LitGPTError: Nothing tells where a document ends.
    """
    if dataset is None:
        return None
    start, end = (None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)
    if start is None and end is None:
        why = "there is no tokenizer" if tokenizer is None else "the tokenizer has neither a start nor an end token"
        raise LitGPTError(
            f"train.document_masks needs to know where documents end, and {why}: give --tokenizer_dir with one that "
            "has, or leave it out."
        )
    return Documents(dataset, start, end)
