"""What a data module is, and how instructions and their answers become token ids.

A sample is `{"input_ids": (T,) int64, "labels": (T,) int64}`, not shifted; labels are `ignore_index` where nothing is
learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate, PromptStyle

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from litgpt.tokenizer import Tokenizer

Row = Mapping[str, Any]
"""One entry of a data file: `instruction`, `output`, perhaps `input`, and whatever else a prompt style uses."""


class DataModule(ABC):
    """A source of samples. Call `connect`, `prepare_data` (one process), `setup` (each), then use its data sets."""

    tokenizer: Tokenizer | None = None
    batch_size: int = 1
    max_seq_length: int = -1
    """Tokens of a sample at most; -1: no limit."""
    train_dataset: Any = None
    val_dataset: Any = None
    """None where there is nothing to validate on."""
    say: Callable[[str], None] = staticmethod(print)
    """Where counts and choices are told."""

    def connect(
        self, tokenizer: Tokenizer | None = None, batch_size: int = 1, max_seq_length: int | None = None
    ) -> None:
        """Tells the module whom it works for. `max_seq_length` None: no limit."""
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_seq_length = -1 if max_seq_length is None else max_seq_length

    def prepare_data(self) -> None:  # noqa: B027  (most have nothing to do)
        """What one process does for all: downloads, token files."""

    @abstractmethod
    def setup(self, stage: str = "") -> None:
        """Makes `train_dataset` and `val_dataset`."""

    @property
    def test_dataset(self) -> Any:
        """The validation set, under LitGPT's other name for it."""
        return self.val_dataset

    def train_dataloader(self) -> DataLoader:
        """Batches of training samples, in an order drawn from `seed`."""
        return self._loader(self.train_dataset, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of validation samples, in order."""
        return self._loader(self.val_dataset, shuffle=False)

    def _loader(self, dataset: Any, shuffle: bool) -> DataLoader:
        import torch
        from torch.utils.data import DataLoader

        collate = get_sft_collate_fn(self.max_seq_length, ignore_index=getattr(self, "ignore_index", -100))
        generator = torch.Generator().manual_seed(getattr(self, "seed", 42))
        workers = getattr(self, "num_workers", 0)
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, generator=generator, num_workers=workers, collate_fn=collate
        )


class NothingFits(LitGPTError):
    """Every prompt of a data set is too long."""


class SFTModule(DataModule):
    """A source of instructions with answers; a subclass says how to get its rows.

    Subclasses have the arguments `mask_prompt`, `prompt_style`, `ignore_index`, `seed`, `num_workers`.
    """

    mask_prompt: bool
    prompt_style: str | PromptStyle
    ignore_index: int
    seed: int
    train_dataset: SFTDataset | None = None
    val_dataset: SFTDataset | None = None

    @abstractmethod
    def rows(self) -> tuple[list[Row], list[Row]]:
        """The entries to train and to validate on."""

    def connect(
        self, tokenizer: Tokenizer | None = None, batch_size: int = 1, max_seq_length: int | None = None
    ) -> None:
        super().connect(tokenizer, batch_size, max_seq_length)
        if tokenizer is not None:
            self.prompt_style = style_of(self.prompt_style, tokenizer)

    def setup(self, stage: str = "") -> None:
        train, val = self.rows()
        self.train_dataset = self._dataset(train, "training")
        try:
            self.val_dataset = self._dataset(val, "validation") if val else None
        except NothingFits:
            self.say(
                f"No validation: no prompt of its samples leaves room for an answer in {self.max_seq_length} tokens."
            )

    def _dataset(self, rows: list[Row], purpose: str) -> SFTDataset:
        if self.tokenizer is None:
            raise LitGPTError("These samples need a tokenizer: call connect(tokenizer=...) before setup().")
        dataset = SFTDataset(
            rows, self.tokenizer, self.prompt_style, self.max_seq_length, self.mask_prompt, self.ignore_index
        )
        for sentence in dataset.losses(purpose):
            self.say(sentence)
        return dataset


def split_rows(rows: Sequence[Row], val_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Shuffles by `seed` and cuts into training and validation, as LitGPT does; of several rows one validates."""
    import torch

    if not 0 < val_fraction < 1:
        raise LitGPTError(f"val_split_fraction must lie between 0 and 1, not {val_fraction}.")
    n_train, n_val = int(len(rows) * (1 - val_fraction)), int(len(rows) * val_fraction)
    n_train = len(rows) - n_val if n_train + n_val < len(rows) else n_train
    n_train = min(n_train, max(1, len(rows) - 1))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order[:n_train]], [rows[i] for i in order[n_train:]]


class SFTDataset:
    """Instructions and answers as token ids, tokenized once, in batches.

    Prompt and answer are tokenized separately, the answer with an end token. A sample longer than `max_seq_length` is
    cut, but keeps its end token; one whose prompt leaves no room for an answer is left out: it could teach nothing.

    Args:
        data: Rows with `instruction` and `output`.
        tokenizer: Makes the ids.
        prompt_style: A style or its name.
        max_seq_length: Tokens of a sample at most; -1: no limit.
        mask_prompt: Learn the answers only.
        ignore_index: The label of what is not learned.
        transform: Applied to each row first.

    Raises:
        LitGPTError: A row lacks a key, there is no row, or none has room for an answer.
    """

    def __init__(
        self,
        data: Sequence[Row],
        tokenizer: Tokenizer,
        prompt_style: str | PromptStyle,
        max_seq_length: int = -1,
        mask_prompt: bool = True,
        ignore_index: int = -100,
        transform: Callable[[Any], Row] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt_style = style_of(prompt_style, tokenizer)
        self.max_seq_length = max_seq_length
        self.mask_prompt = mask_prompt
        self.ignore_index = ignore_index
        self.n_cut = self.n_dropped = 0
        rows = [transform(dict(row)) if transform else row for row in data]
        if not rows:
            raise LitGPTError("The data set has no samples.")
        prompts, answers = self._tokenize(rows)
        self._keep(rows, prompts, answers)

    def _tokenize(self, rows: Sequence[Row]) -> tuple[list[list[int]], list[list[int]]]:
        texts = [render(self.prompt_style, row, number) for number, row in enumerate(rows)]
        bos = False if self.prompt_style.adds_bos else None
        prompts = self.tokenizer.encode_batch([prompt for prompt, _ in texts], bos=bos)
        # A chat template writes the end of an answer itself; what follows (a line break) is not the model's to say.
        own_end = isinstance(self.prompt_style, ChatTemplate)
        answers = self.tokenizer.encode_batch([answer for _, answer in texts], bos=False, eos=not own_end)
        ends = {ids[0] for ids in self.prompt_style.stop_tokens(self.tokenizer) if len(ids) == 1}
        return prompts, [self._ended(answer, ends) for answer in answers] if own_end else answers

    def _ended(self, answer: list[int], ends: set[int]) -> list[int]:
        """An answer up to its last end token, or with one."""
        last = max((i for i, token in enumerate(answer) if token in ends), default=None)
        if last is not None:
            return answer[: last + 1]
        return answer if self.tokenizer.eos_id is None else [*answer, self.tokenizer.eos_id]

    def _keep(self, rows: Sequence[Row], prompts: list[list[int]], answers: list[list[int]]) -> None:
        import torch

        limit = self.max_seq_length if self.max_seq_length > 0 else None
        self.data: list[Row] = []
        self.lengths: list[int] = []
        """Tokens of each sample."""
        self._prompt_lengths: list[int] = []
        flat: list[int] = []
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            ids = prompt + answer
            if limit is not None and len(ids) > limit:
                if len(prompt) >= limit - 1:
                    self.n_dropped += 1
                    continue
                ids = [*ids[: limit - 1], ids[-1]]
                self.n_cut += 1
            self.data.append(row)
            self.lengths.append(len(ids))
            self._prompt_lengths.append(len(prompt))
            flat += ids
        if not self.lengths:
            raise NothingFits(f"No prompt leaves room for an answer in {limit} tokens; raise train.max_seq_length.")
        self._ids = torch.tensor(flat, dtype=torch.int32).split(self.lengths)

    def losses(self, purpose: str) -> list[str]:
        """What the length limit costs, in sentences; `purpose` names the data set."""
        sentences = []
        if self.n_cut:
            sentences.append(
                f"{self.n_cut} {purpose} samples are cut at {self.max_seq_length} tokens (train.max_seq_length)."
            )
        if self.n_dropped:
            reason = f"their prompts leave no room for an answer in {self.max_seq_length} tokens (train.max_seq_length)"
            sentences.append(f"{self.n_dropped} {purpose} samples are left out: {reason}.")
        return sentences

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self._ids[index].long()
        labels = ids.clone()
        if self.mask_prompt:
            labels[: self._prompt_lengths[index]] = self.ignore_index
        return {"input_ids": ids, "labels": labels}


def style_of(prompt_style: str | PromptStyle, tokenizer: Tokenizer) -> PromptStyle:
    """The style of that name, as it is with this tokenizer; `chat` is the tokenizer's own template."""
    style = PromptStyle.from_name(prompt_style) if isinstance(prompt_style, str) else prompt_style
    return style.for_checkpoint(tokenizer.checkpoint_dir)


def render(style: PromptStyle, row: Row, number: int) -> tuple[str, str]:
    """A row as the text of its prompt and of its answer."""
    for key in ("instruction", "output"):
        if not isinstance(row.get(key), str):
            raise LitGPTError(f"Sample {number} has no text under the key {key!r}.")
    row = with_input_placed(style, row)
    prompt, answer = style.apply_sample(row), row["output"]
    if not isinstance(style, ChatTemplate):
        return prompt, answer
    messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": answer}]
    if row.get("sys_prompt"):
        messages.insert(0, {"role": "system", "content": row["sys_prompt"]})
    whole = style.apply_messages(messages, add_generation_prompt=False)
    return prompt, whole.removeprefix(prompt) if whole.startswith(prompt) else answer


def with_input_placed(style: PromptStyle, row: Row) -> Row:
    """The row; its `input` follows the instruction where the style has no place for it, so that nothing is lost."""
    if row.get("input") and (isinstance(style, ChatTemplate) or not _has_place_for_input(style)):
        return {**row, "instruction": f"{row['instruction']}\n\n{row['input']}", "input": ""}
    return row


def _has_place_for_input(style: PromptStyle) -> bool:
    return style.apply("a", input="b") != style.apply("a", input="")


def get_sft_collate_fn(
    max_seq_length: int = -1, pad_id: int = 0, ignore_index: int = -100
) -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """A function that pads samples on the right to the longest of a batch, cut at `max_seq_length` (-1: not)."""

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        from torch.nn.utils.rnn import pad_sequence

        limit = max_seq_length if max_seq_length > 0 else None
        padding = {"input_ids": pad_id, "labels": ignore_index}
        return {
            key: pad_sequence([sample[key][:limit] for sample in samples], batch_first=True, padding_value=value)
            for key, value in padding.items()
        }

    return collate
