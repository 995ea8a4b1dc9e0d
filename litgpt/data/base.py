"""What a data module is.

A sample is `{"input_ids": (T,) int64, "labels": (T,) int64}`, not shifted; labels are `ignore_index` where a token is
no target. One of instructions has `token_counts` as well, two numbers: `raw`, without the prompt style, and
`raw_plus_prompt_template`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from litgpt.data.lightning_module import as_lightning
from litgpt.data.sft.samples import SFTDataset as SFTDataset
from litgpt.errors import LitGPTError, check_token_ids, quoted

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from litgpt.tokenizer import Tokenizer


class DataModule(ABC):
    """A source of samples. Call `connect`, `prepare_data` (one process), `setup` (each), then use its data sets."""

    tokenizer: Tokenizer | None = None
    batch_size: int = 1
    max_seq_length: int = -1
    """Tokens of a sample at most; -1: no limit."""
    train_dataset: Any = None
    val_dataset: Any = None
    """None where there is nothing to validate on."""
    log: Callable[[str], None] = staticmethod(print)
    """Prints counts and choices for the user."""
    compares: bool = False
    """Whether samples are answers to compare, not text to learn."""
    asks: bool = False
    """Whether samples are prompts alone, for the model to answer in training."""
    pretraining: bool = False
    """Whether samples are to be blocks of one long stream of tokens, all of them targets."""

    def connect(
        self,
        tokenizer: Tokenizer | None = None,
        batch_size: int = 1,
        max_seq_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Sets what samples are made for.

        Args:
            tokenizer: May be any object with `encode(text)` and `decode(ids)`.
            batch_size: Samples of a batch.
            max_seq_length: None: no limit.
            kwargs: For modules of the user's own.

        Raises:
            LitGPTError: A module of litgpt's is given one of `kwargs`.
        """
        from litgpt.tokenizer import Tokenizer

        if kwargs and type(self).__module__.startswith("litgpt.data."):
            raise LitGPTError(f"{type(self).__name__}.connect has no argument {quoted(next(iter(kwargs)))}.")
        as_lightning(self)
        self.tokenizer = None if tokenizer is None else Tokenizer.of(tokenizer)
        self.batch_size = batch_size
        self.max_seq_length = -1 if max_seq_length is None else max_seq_length
        self.on_connect()

    def on_connect(self) -> None:  # noqa: B027  (most have nothing to do)
        """Called by `connect` when the tokenizer and the limits are set."""

    def prepare_data(self) -> None:  # noqa: B027  (most have nothing to do)
        """What one process does for all: downloads, token files."""

    @abstractmethod
    def setup(self, stage: str = "") -> None:
        """Makes `train_dataset` and `val_dataset`."""

    def check_vocabulary(self, size: int) -> None:
        """Raises a LitGPTError when a token id is `size` or more.

        Reads everything where the tokenizer has such ids, the first samples where there is no tokenizer.
        """
        largest = getattr(self.tokenizer, "largest_id", None)
        if largest is None or largest >= size:
            for dataset in (self.train_dataset, self.val_dataset):
                check_token_ids(largest_ids(dataset, FIRST if largest is None else None), size, "The data")

    @property
    def test_dataset(self) -> Any:
        """The validation set, under LitGPT's other name for it."""
        return self.val_dataset

    def train_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of training samples, in an order drawn from `seed`."""
        return self._loader(self.train_dataset, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of validation samples, in order; none where there is nothing to validate on."""
        return self._loader(self.val_dataset, shuffle=False)

    def read_ahead(self) -> int:
        """How many steps training reads ahead: `num_workers`, 0 where there is none.

        Raises:
            LitGPTError: It is no such number.
        """
        workers = getattr(self, "num_workers", 0)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise LitGPTError(f"data.num_workers is a whole number, 0 or more, not {quoted(workers)}.")
        return workers

    def _loader(self, dataset: Any, shuffle: bool) -> Any:
        if dataset is None:
            return []
        import torch
        from torch.utils.data import DataLoader

        collate = get_sft_collate_fn(self.max_seq_length, ignore_index=getattr(self, "ignore_index", -100))
        generator = torch.Generator().manual_seed(getattr(self, "seed", 42))
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            generator=generator,
            num_workers=self.read_ahead(),
            collate_fn=collate,
        )


FIRST = 64
"""Samples that are looked at where no tokenizer says which ids there can be."""


def largest_ids(dataset: Any, most: int | None) -> Iterator[int]:
    """The largest id of each sample, or of the first `most`, of a data set whose length is known."""
    for index in range(len(dataset) if isinstance(dataset, Sized) else 0)[:most]:
        yield int(dataset[index]["input_ids"].max())


def split_sizes(size: int, val_fraction: float) -> tuple[int, int]:
    """How many of `size` samples train and how many validate, as LitGPT cuts them; of several at least one of each,
    but where the fraction is 0 none validates.

    Raises:
        LitGPTError: The fraction is not from 0 up to, not including, 1.
    """
    check_val_fraction(val_fraction)
    if not val_fraction:
        return size, 0
    n_train, n_val = int(size * (1 - val_fraction)), int(size * val_fraction)
    n_train = size - n_val if n_train + n_val < size else n_train
    n_train = min(n_train, max(1, size - 1))
    return n_train, size - n_train


def check_val_fraction(fraction: float) -> None:
    """Raises a LitGPTError where a share to validate on is not from 0 (none) up to, not including, 1."""
    if not 0 <= fraction < 1:
        raise LitGPTError(
            f"data.val_split_fraction must lie between 0 and 1, not {fraction}; 0 trains without validation."
        )


def split_indices(size: int, val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Shuffles the numbers below `size` by `seed` and cuts them into training and validation, as LitGPT does."""
    import torch

    n_train, _ = split_sizes(size, val_fraction)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:n_train], order[n_train:]


def get_sft_collate_fn(
    max_seq_length: int = -1, pad_id: int = 0, ignore_index: int = -100
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A function that pads samples on the right to the longest of a batch, `(B, T)`, cut at `max_seq_length` (-1: not).

    Where samples have `token_counts`, so has the batch, `(B, 1)` each.
    """

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        limit = max_seq_length if max_seq_length > 0 else None
        padding = {"input_ids": pad_id, "labels": ignore_index}
        batch: dict[str, Any] = {
            key: pad_sequence([sample[key][:limit] for sample in samples], batch_first=True, padding_value=value)
            for key, value in padding.items()
        }
        if counts := [sample["token_counts"] for sample in samples if "token_counts" in sample]:
            batch["token_counts"] = {name: torch.tensor([[count[name]] for count in counts]) for name in counts[0]}
        return batch

    return collate
