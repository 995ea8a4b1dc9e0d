"""The samples of preferences: two sequences each, one behind the other, as views of a data set of single sequences.

`{"input_ids": (T,), "labels": (T,), "documents": (2,)}`, where documents are the lengths of both as inputs: the prompt
with the chosen and with the rejected answer; or the prompt with a single answer and with the answer to another prompt,
and `given`, `(1,)` float32, 1 where the answer is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from litgpt.data.sft.encoding import RowRenderer, TokenizedShard
from litgpt.data.sft.preference_rows import CHOSEN, REJECTED, UNWANTED, WANTED
from litgpt.data.sft.samples import NoUsableSamples, SampleOptions, SFTDataset
from litgpt.data.storage.fingerprint import array_hash
from litgpt.data.storage.token_cache import content_hash
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def first_answers(shards: Sequence[TokenizedShard]) -> np.ndarray:
    """The numbers, through all shards, of the sequences that are the first or only one of their rows."""
    import numpy as np

    return np.flatnonzero(kinds_of(shards) != REJECTED)


def kinds_of(shards: Sequence[TokenizedShard]) -> np.ndarray:
    """What each sequence of all shards is."""
    import numpy as np

    return np.concatenate([np.asarray(shard.tokens["kinds"], dtype=np.int64) for shard in shards])


class PreferenceDataset:
    """Pairs of answers; or, `single`, answers by themselves, those of pairs as well.

    A pair is left out if one of its answers has no room, or if both are the same once they are cut.

    Args:
        shards: Where the sequences are.
        row_renderer: How rows became tokens.
        options: How sequences are made to fit.
        chosen: Which rows, by their place in `first_answers`, in which order. None: all.
        single: What samples are.

    Raises:
        LitGPTError: A row has a label and samples are pairs, or no sample is left.
    """

    def __init__(
        self,
        shards: Sequence[TokenizedShard],
        row_renderer: RowRenderer,
        options: SampleOptions,
        chosen: Sequence[int] | None = None,
        single: bool = False,
    ) -> None:
        import numpy as np

        kinds, firsts = kinds_of(shards), first_answers(shards)
        firsts = firsts if chosen is None else firsts[np.asarray(chosen, dtype=np.int64)]
        self.single, self.options = single, options
        labelled = firsts[kinds[firsts] != CHOSEN]
        if len(labelled) and not single:
            where = _location(shards, int(labelled[0]))
            raise LitGPTError(f"{where} has a label, not a pair of answers; --loss kto learns from such rows.")
        paired = kinds[firsts] == CHOSEN
        wanted = firsts[np.isin(kinds[firsts], (CHOSEN, WANTED))]
        unwanted = np.concatenate([firsts[kinds[firsts] == UNWANTED], firsts[paired] + 1])
        numbers = np.concatenate([wanted, unwanted]) if single else np.stack([firsts, firsts + 1], 1).reshape(-1)
        self.sequences = SFTDataset.from_shards(shards, row_renderer, options, numbers.tolist())
        self.wanted = np.isin(self._kinds(shards), (CHOSEN, WANTED))
        self.n_dropped = self.n_alike = 0
        self.pairs = self._neighbours() if single else self._pairs(shards)
        if not len(self.pairs):
            raise NoUsableSamples(f"No pair is left in {options.max_seq_length} tokens; raise train.max_seq_length.")

    def _kinds(self, shards: Sequence[TokenizedShard]) -> np.ndarray:
        """What each of `sequences` is."""
        import numpy as np

        kinds = [np.asarray(shard.tokens["kinds"], dtype=np.int64) for shard in shards]
        return np.array([kinds[shard][row] for shard, row in self.sequences.places.tolist()])

    def _neighbours(self) -> np.ndarray:
        """Each sequence, and the one whose answer it is compared with; of pairs, wanted ones come first, so that the
        next has another prompt."""
        import numpy as np

        own = np.arange(len(self.sequences))
        return np.stack([own, np.roll(own, -1)], axis=1)

    def _pairs(self, shards: Sequence[TokenizedShard]) -> np.ndarray:
        """Chosen and rejected of each pair, as numbers of `sequences`, `(P, 2)`."""
        import numpy as np

        at = {tuple(place): number for number, place in enumerate(self.sequences.places.tolist())}
        found = list[tuple[int, int]]()
        for (shard, row), number in at.items():
            other = at.get((shard, row + 1)) if self.wanted[number] else None
            if other is None:
                self.n_dropped += bool(self.wanted[number] or (shard, row - 1) not in at)
            elif self._alike(number, other):
                self.n_alike += 1
            else:
                found.append((number, other))
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def _alike(self, one: int, other: int) -> bool:
        """Whether two sequences are the same, which they can only be if both are cut."""
        limit, lengths = self.options.max_seq_length, self.sequences.lengths
        if not lengths[one] == lengths[other] == limit:
            return False
        return bool((self.sequences[one]["input_ids"] == self.sequences[other]["input_ids"]).all())

    def unused(self, purpose: str) -> list[str]:
        """What of the data is not used, in sentences; `purpose` names the data set."""
        sentences = self.sequences.unused(purpose, "answer")
        limit = f"{self.options.max_seq_length} tokens (train.max_seq_length)"
        for count, why in (
            (self.n_dropped, f"one of their answers has no room in {limit}"),
            (self.n_alike, f"their answers are the same up to {limit}"),
        ):
            if count:
                sentences.append(f"{count:,} {purpose} pair{' is' if count == 1 else 's are'} left out: {why}.")
        return sentences

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return self.sequences.lengths

    @property
    def full_lengths(self) -> list[int]:
        """The same before any is cut or left out."""
        return self.sequences.full_lengths

    def target_count(self) -> int:
        """The tokens of all answers."""
        return self.sequences.target_count()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the samples, as they are cut."""
        import numpy as np

        arrays = (self.pairs, self.wanted, np.array(self.lengths))
        return content_hash(self.sequences.fingerprint.encode(), *map(array_hash, arrays), bytes([self.single]))

    @property
    def prompt_style(self) -> PromptStyle:
        """How samples are rendered."""
        return self.sequences.prompt_style

    def question(self, index: int, protect: Callable[[str], str] = str) -> tuple[str, str] | None:
        """As `SFTDataset.question`, of what the answers of a sample answer."""
        number, row = self.sequences.places[self.pairs[index, 0]].tolist()
        shard, answers = self.sequences.shards[number], self.sequences.row_renderer.answers
        assert answers is not None
        line = int(shard.tokens["lines"][row])
        found = next(content for at, content in shard.rows() if at == line)
        return self.sequences.asked(answers(found)[0][1], protect)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        first, second = (self.sequences[number] for number in self.pairs[index].tolist())
        if self.single:
            second = self._answered_with(first, second)
        n_first, n_second = len(first["input_ids"]), len(second["input_ids"])
        labels = torch.cat([first["labels"], second["labels"]])
        labels[n_first] = self.options.ignore_index  # nothing before it may be looked at
        sample = {
            "input_ids": torch.cat([first["input_ids"], second["input_ids"]]),
            "labels": labels,
            "documents": torch.tensor([n_first, n_second - 1]),
        }
        if self.single:
            sample["given"] = torch.tensor([float(self.wanted[self.pairs[index, 0]])])
        return sample

    def _answered_with(self, asked: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
        """The prompt of one sequence with the answer of another, cut to the limit."""
        import torch

        starts = [int((part["labels"] != self.options.ignore_index).nonzero()[0]) for part in (asked, other)]
        limit = self.options.max_seq_length if self.options.max_seq_length > 0 else None
        parts = [
            torch.cat([asked[key][: starts[0]], other[key][starts[1] :]])[:limit] for key in ("input_ids", "labels")
        ]
        return dict(zip(("input_ids", "labels"), parts, strict=True))


def _location(shards: Sequence[TokenizedShard], number: int) -> str:
    for shard in shards:
        if number < len(shard):
            return shard.location(number)
        number -= len(shard)
    raise IndexError(number)
