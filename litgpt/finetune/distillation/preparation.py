"""Writing down what a teacher knows of data: from the arguments of `litgpt distill prepare` to its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litgpt.checkpoint.hub import auto_download
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.data import Alpaca, DataModule
from litgpt.errors import UsageError
from litgpt.finetune.distillation.arguments import datasets_of, manifest_of
from litgpt.finetune.distillation.teachers import ServedTeacher, is_url, open_teacher
from litgpt.runtime import output_path, parameter_dtype, pick_device, quantized_precision
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import target_count
from litgpt.training.distill.divergences import DistillationLoss
from litgpt.training.distill.stored import MAX_K, write
from litgpt.training.distill.teachers import AllTokens, Asked, BestTokens, ModelTeacher, Teacher
from litgpt.training.loss import chunk_rows, slices

MODEL_K, SERVER_K = 64, 20
"""Tokens that are kept of each distribution unless asked otherwise."""


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    asked: int
    """Samples that the teacher was asked about."""
    teacher: str
    folder: Path


@dataclass(frozen=True)
class _Opened:
    """A teacher that can be asked."""

    name: str
    of_weights: str
    """What tells it from others."""
    teacher: Teacher
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The arguments of `litgpt distill prepare`, by their names there."""

    checkpoint_dir: Path
    teacher: str
    data: DataModule | None
    out_dir: Path
    top_k: int | None
    temperature: float
    max_seq_length: int | None
    micro_batch_size: int
    precision: str | None
    quantize: str | None
    teacher_name: str | None
    api_key: str | None = field(repr=False)
    access_token: str | None = field(repr=False)

    @property
    def served(self) -> bool:
        """Whether the teacher is a server."""
        return is_url(self.teacher)

    @property
    def k(self) -> int:
        """Tokens to keep of each distribution."""
        usual = SERVER_K if self.served else MODEL_K
        return usual if self.top_k is None else self.top_k

    def check(self) -> None:
        """Raises a UsageError where arguments make no sense."""
        DistillationLoss(temperature=self.temperature)
        if not 1 <= self.k <= MAX_K or self.micro_batch_size < 1:
            raise UsageError(f"--top_k must be 1 to {MAX_K}, and --micro_batch_size 1 or more.")
        if self.served and self.temperature != 1:
            raise UsageError(
                "--temperature is 1 with a server, which gives no others' log-probabilities; leave it out."
            )

    def run(self) -> Prepared:
        """Writes what isn't there yet.

        Raises:
            LitGPTError: The student, the teacher, the data or the folder can't be used.
        """
        self.check()
        checkpoint = find_checkpoint(auto_download(self.checkpoint_dir, access_token=self.access_token))
        tokenizer = Tokenizer(checkpoint.dir)
        k, rows = min(self.k, len(tokenizer)), checkpoint.config.padded_vocab_size or len(tokenizer)
        data, limit = self._data(checkpoint, tokenizer)
        opened = self._open(tokenizer, k)
        ask = partial(
            best_of,
            opened.teacher,
            k=k,
            temperature=self.temperature,
            micro_batch_size=self.micro_batch_size,
            device=opened.device,
            vocabulary=rows,
        )
        folder = output_path(self.out_dir)
        manifest = manifest_of(data, opened.of_weights, limit, k, self.temperature, len(tokenizer))
        count = write(folder, manifest, datasets_of(data), ask, _tell)
        return Prepared(count, opened.name, folder)

    def _data(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[DataModule, int]:
        """The samples as the training will have them, and how many tokens each may have."""
        data, block_size = self.data or Alpaca(), checkpoint.config.block_size
        limit = min(self.max_seq_length or block_size, block_size)
        data.connect(tokenizer, self.micro_batch_size, limit)
        data.prepare_data()
        data.setup()
        return data, limit

    def _open(self, tokenizer: Tokenizer, k: int) -> _Opened:
        """The teacher.

        Raises:
            LitGPTError: There is none, or it has another vocabulary.
        """
        if self.served:
            served = ServedTeacher(self.teacher, self.teacher_name, self.api_key, k, tokenizer)
            return _Opened(served.served.name, served.served.name, served, torch.device("cpu"))
        device = pick_device()
        dtype = parameter_dtype(quantized_precision(self.quantize, self.precision, training=False, device=device))
        model, of_weights = open_teacher(self.teacher, tokenizer, device, dtype, self.quantize, self.access_token)
        return _Opened(self.teacher, of_weights, ModelTeacher(model), device)


def _tell(name: str, done: int, count: int) -> None:
    print(f"{name}: {done:,} of {count:,} samples")


def best_of(
    teacher: Teacher,
    samples: Sequence[Mapping[str, Any]],
    k: int,
    temperature: float,
    micro_batch_size: int,
    device: torch.device,
    vocabulary: int,
) -> BestTokens:
    """The best tokens of the student's `vocabulary` for all targets of some samples, in their order."""
    batch = Batching(micro_batch_size, None, packing=True).cut(samples, 1)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for chosen, part in zip((of_ranks[0] for of_ranks in batch.plan), batch.of_rank(0), strict=True):
        asked = Asked(part.inputs.to(device), part.targets.to(device), part.lengths, None)
        if not len(asked.rows):
            continue
        known = teacher.ask(asked)
        if isinstance(known, AllTokens):
            rows = [
                _best(known, own, k, temperature, vocabulary)
                for own in slices(asked.rows, chunk_rows(vocabulary, 16, asked.rows))
            ]
            known = BestTokens(torch.cat([ids for ids, _ in rows]), torch.cat([values for _, values in rows]))
        assert isinstance(known, BestTokens)
        counts = [target_count(samples[at]) for at in chosen]
        parts = zip(known.ids.cpu().split(counts), known.values.cpu().split(counts), strict=True)
        found.update(zip(chosen, parts, strict=True))
    ordered = [found[at] for at in range(len(samples)) if at in found]
    empty = torch.zeros(0, k)
    ids, values = (torch.cat([empty.long() if at == 0 else empty, *(pair[at] for pair in ordered)]) for at in (0, 1))
    return BestTokens(ids, values)


def _best(known: Any, own: slice, k: int, temperature: float, vocabulary: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = known.head(known.hidden[own]).float()[:, :vocabulary]
        values, ids = (logits / temperature).log_softmax(-1).topk(k)
    return ids, values
