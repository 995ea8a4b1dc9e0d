"""What distillation needs besides what every finetuning does: a teacher, and answers of the student itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from litgpt.data import DataModule
from litgpt.data.storage.fingerprint import data_fingerprint
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune.base import FinetuneArguments, Start
from litgpt.finetune.distillation.teachers import ServedTeacher, is_stored, is_url, open_teacher
from litgpt.finetune.sampling_answers import Sampler
from litgpt.model import GPT
from litgpt.runtime import parameter_dtype
from litgpt.training.batching.packing import GIVEN
from litgpt.training.distill.divergences import DistillationLoss
from litgpt.training.distill.objective import Distillation
from litgpt.training.distill.stored import Manifest, StoredTeacher
from litgpt.training.distill.teachers import ModelTeacher, Teacher
from litgpt.training.loss import IGNORED
from litgpt.training.run import Objective, Rollouts


@dataclass(kw_only=True)
class DistillArguments(FinetuneArguments):
    """The arguments of distillation."""

    distillation: DistillationLoss
    teacher: str
    teacher_name: str | None = None
    teacher_quantize: str | None = None
    api_key: str | None = field(default=None, repr=False)
    top_k: int = 20
    on_policy: float = 0.0
    max_new_tokens: int = 128
    sampling_temperature: float = 1.0

    def check_data(self, data: DataModule) -> None:
        super().check_data(data)
        if self.train.label_smoothing or self.train.z_loss:
            name = "label_smoothing" if self.train.label_smoothing else "z_loss"
            raise UsageError(f"train.{name} is of the cross-entropy alone, not of distillation; leave it out.")
        if not 0 <= self.on_policy <= 1:
            raise UsageError(f"--on_policy is a share of the samples, 0 to 1, not {self.on_policy}.")
        if self.on_policy and not getattr(data, "mask_prompt", False):
            raise UsageError(
                "--on_policy needs to know where answers begin: give --data.mask_prompt true, and data with prompts."
            )
        if self.max_new_tokens < 1:
            raise UsageError(f"--max_new_tokens must be 1 or more, not {self.max_new_tokens}.")
        if self.on_policy and is_stored(self.teacher):
            raise UsageError(
                f"--teacher {self.teacher} holds what a teacher knows of given answers, and --on_policy makes others; "
                "give the teacher itself."
            )
        if is_url(self.teacher) and self.distillation.temperature != 1:
            raise UsageError(
                "--temperature is 1 with a server, which gives no others' log-probabilities; leave it out."
            )
        for name in ("teacher_name", "api_key"):
            if getattr(self, name) is not None and not is_url(self.teacher):
                raise UsageError(f"--{name} is for a teacher that is served; leave it out.")
        if self.teacher_quantize is not None and (is_url(self.teacher) or is_stored(self.teacher)):
            raise UsageError("--teacher_quantize is for a teacher's folder; leave it out.")

    def fixed(self) -> dict[str, Any]:
        loss = self.distillation
        return {"divergence": loss.divergence, "alpha": loss.alpha, "temperature": loss.temperature}

    def objective(self, start: Start) -> Callable[[GPT], Objective]:
        return partial(Distillation, loss=self.distillation, teacher=self._teacher(start))

    def _teacher(self, start: Start) -> Teacher:
        """The teacher; samples of one that is stored know where they are in its files.

        Raises:
            LitGPTError: It can't be used with this student, or this data.
        """
        if is_url(self.teacher):
            return ServedTeacher(self.teacher, self.teacher_name, self.api_key, self.top_k, start.tokenizer)
        if is_stored(self.teacher):
            return stored_teacher(Path(self.teacher), start, self.distillation, self.train.max_seq_length)
        dtype = parameter_dtype(start.precision)
        model, _ = open_teacher(
            self.teacher, start.tokenizer, start.fabric.device, dtype, self.teacher_quantize, self.access_token
        )
        return ModelTeacher(model)

    def rollouts(self, start: Start) -> Rollouts | None:
        return OnPolicy(self, start) if self.on_policy else None


def stored_teacher(folder: Path, start: Start, loss: DistillationLoss, max_seq_length: int | None) -> StoredTeacher:
    """The teacher in a folder of `litgpt distill prepare`.

    Raises:
        LitGPTError: It was made for other samples, or another temperature.
    """
    data, config = start.data, start.model.config
    found = Manifest.read(folder)
    limit = min(max_seq_length or config.block_size, config.block_size)
    asked = manifest_of(data, found.teacher, limit, found.top_k, loss.temperature, len(start.tokenizer))
    found.check(asked, folder)
    datasets = datasets_of(data)
    teacher = StoredTeacher(folder, {name: len(one) for name, one in datasets.items()}, config.padded_vocab_size or 0)
    for name, dataset in datasets.items():
        setattr(data, f"{name}_dataset", teacher.of(name, dataset))
    return teacher


def datasets_of(data: DataModule) -> dict[str, Any]:
    """The data sets that there are, by name."""
    both = {"train": data.train_dataset, "val": data.val_dataset}
    return {name: dataset for name, dataset in both.items() if dataset is not None}


def manifest_of(
    data: DataModule, teacher: str, max_seq_length: int, top_k: int, temperature: float, vocabulary: int
) -> Manifest:
    """What files of these samples hold.

    Raises:
        LitGPTError: The samples change from one reading to the next.
    """
    prints = {}
    for name, dataset in datasets_of(data).items():
        found = data_fingerprint(dataset)
        if found is None:
            raise LitGPTError(
                "This data has other samples each epoch, and a teacher's tokens are stored for given ones; give "
                "--teacher a model's folder."
            )
        prints[name] = found
    return Manifest(
        teacher, prints["train"], prints.get("val", ""), max_seq_length, top_k, float(temperature), vocabulary
    )


class OnPolicy:
    """Puts, for some of the samples, what the student itself answers to their prompts in place of their answers."""

    updates = 1

    def __init__(self, args: DistillArguments, start: Start) -> None:
        self.args, self.tokenizer = args, start.tokenizer
        style = getattr(start.data, "prompt_style", None)
        stops = [] if style is None else style.stop_tokens(start.tokenizer)
        self.sampler = Sampler(
            start.model, start.fabric, [*start.tokenizer.stop_ids, *stops], args.max_new_tokens, MAX_CONCURRENT_REQUESTS
        )
        self.last = ""

    def make(self, number: int, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `Rollouts.make`."""
        drawn = random.Random(f"{self.args.seed} on policy {number}")
        chosen: dict[int, list[int]] = {}
        for at, sample in enumerate(samples):
            prompt = prompt_of(sample)
            if drawn.random() < self.args.on_policy and prompt and self.sampler.fits(prompt):
                chosen[at] = prompt
        samplings = [Sampling(self.args.sampling_temperature, logprobs=0, seed=drawn.getrandbits(62)) for _ in chosen]
        answers = self.sampler.answers(list(chosen.values()), samplings)
        made = [dict(sample) for sample in samples]
        for (at, prompt), answer in zip(chosen.items(), answers, strict=True):
            ids = torch.tensor([*prompt, *answer.ids])
            labels = ids.clone()
            labels[: len(prompt)] = IGNORED
            made[at] = {"input_ids": ids, "labels": labels}
            if GIVEN in samples[at]:
                made[at][GIVEN] = samples[at][GIVEN]
            self.last = f"{self.tokenizer.decode(prompt)}\n→ {self.tokenizer.decode(answer.ids)}"
        return made

    def shown(self) -> str | None:
        """As `Rollouts.shown`."""
        return self.last or None

    def save(self, folder: Path, step: int) -> None:
        """Nothing: what is drawn follows from the number of the portion."""

    def restore(self, folder: Path) -> None:
        """Likewise."""


def prompt_of(sample: Mapping[str, Any]) -> list[int]:
    """The tokens in front of the first that is learned; none where all of the sample is."""
    learned = (sample["labels"] != IGNORED).nonzero()
    return [] if not len(learned) else sample["input_ids"][: int(learned[0])].tolist()
