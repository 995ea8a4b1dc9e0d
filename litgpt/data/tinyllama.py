"""TinyLlama's mixture: text of SlimPajama, code of StarCoder, prepared as LitData's chunks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.lit_data import LitDataBlocks, below, is_remote
from litgpt.data.storage.blocks import TokenModule, block_length
from litgpt.data.storage.combined_datasets import MixedDataset
from litgpt.errors import MissingFolderError

WEIGHTS = (0.693584, 0.306416)
"""Shares of text and of code."""


@dataclass
class TinyLlama(TokenModule):
    """SlimPajama and StarCoder, mixed as for TinyLlama."""

    data_path: str | Path = Path("data")
    """The folder with `slimpajama/train`, `slimpajama/val` and `starcoder`; may be in a store (s3://…)."""
    seed: int = 42
    """Of the order in which each source is gone through."""
    num_workers: int = 8
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""
    use_starcoder: bool = True
    """Mix in code."""

    def prepare_data(self) -> None:
        for folder in self._folders():
            if not is_remote(folder) and not Path(folder).is_dir():
                needed = ", ".join(name.removeprefix(below(self.data_path, "")) for name in self._folders())
                raise MissingFolderError(
                    f"There is no folder {folder}; data.data_path names one with {needed}, as chunks."
                )

    def setup(self, stage: str = "") -> None:
        self.prepare_data()
        val, *train = (LitDataBlocks(folder, block_length(self)) for folder in self._folders())
        self.val_dataset = val
        self.train_dataset = MixedDataset(train, WEIGHTS, None, self.seed) if len(train) > 1 else train[0]

    def _folders(self) -> list[str]:
        """Validation first, then what is trained on."""
        text = [below(self.data_path, "slimpajama", name) for name in ("val", "train")]
        return [*text, below(self.data_path, "starcoder")] if self.use_starcoder else text
