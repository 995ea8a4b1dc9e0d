"""What training on preferences needs besides what every finetuning does: its losses, and a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from litgpt.checkpoint.fingerprint import fingerprint
from litgpt.data import DataModule
from litgpt.data.storage.token_cache import cache_folder, file_hash
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune.base import FinetuneArguments, Start
from litgpt.model import GPT
from litgpt.peft import switched_off
from litgpt.training.batching.batches import Batching
from litgpt.training.preference.losses import REFERENCED, PreferenceLoss
from litgpt.training.preference.objective import Preferences
from litgpt.training.preference.reference import with_reference
from litgpt.training.run import Objective


@dataclass(kw_only=True)
class PreferenceArguments(FinetuneArguments):
    """The arguments of training on preferences."""

    preference: PreferenceLoss
    reference: str = "auto"

    def check_data(self, data: DataModule) -> None:
        if not getattr(data, "compares", False):
            raise UsageError("finetune_dpo learns from pairs of answers: give --data Preferences --data.path FILE.")
        if self.train.label_smoothing or self.train.z_loss:
            name = "label_smoothing" if self.train.label_smoothing else "z_loss"
            raise UsageError(
                f"train.{name} is of the cross-entropy over a vocabulary, not of preferences; leave it out."
            )
        if self.reference != "auto" and not self.preference.referenced:
            raise UsageError(
                f"--reference is for --loss {', '.join(REFERENCED)}; {self.preference.kind} compares with none; leave "
                "it out."
            )
        data.single = self.preference.kind == "kto"  # type: ignore[attr-defined]

    def fixed(self) -> dict[str, Any]:
        return {"loss": self.preference.kind, "beta": self.preference.strength}

    def objective(self, start: Start) -> Callable[[GPT], Objective]:
        """The losses, and before them, where the reference is not the adapter switched off, its log-probabilities.

        Raises:
            LitGPTError: The reference can't be had in the way that was asked for.
        """
        if not self.preference.referenced:
            return partial(Preferences, loss=self.preference)
        exact = self.method.switchable and start.update is None
        if self.reference == "adapter_off" and not exact:
            why = (
                "the model starts with an update that was trained before"
                if start.update is not None
                else f"{type(self.method).__name__} trains what can't be switched off"
            )
            raise LitGPTError(
                f"--reference adapter_off is not the model that training starts from: {why}; leave it out."
            )
        if exact and self.reference != "precomputed":
            return partial(Preferences, loss=self.preference, reference=switched_off)
        self._add_reference(start)
        return partial(Preferences, loss=self.preference)

    def _add_reference(self, start: Start) -> None:
        """Gives the samples of both data sets the reference's log-probabilities."""
        data, update = start.data, start.update
        batching = Batching.of(self.train, Preferences.sequences, Preferences.per_sample)
        learned = file_hash(update.file).hex() if update is not None else ""
        rows = str(start.model.config.padded_vocab_size)
        told = (fingerprint(start.checkpoint), learned, start.precision, str(self.quantize), rows)
        folder = cache_folder(getattr(data, "cache_dir", None))
        for name in ("train_dataset", "val_dataset"):
            dataset = getattr(data, name)
            if dataset is not None:
                setattr(data, name, with_reference(start.fabric, start.model, dataset, batching, told, folder))
